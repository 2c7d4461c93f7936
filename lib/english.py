"""English words by what they say of a text about a picture: that a number is computed, denied,
guessed at, belongs to the name behind it. The rules that use them: names.py, claims.py, derive.py.
"""


def words(text: str) -> frozenset[str]:
    """The words of a text, to be looked up."""
    return frozenset(text.split())


# ---- names --------------------------------------------------------------------------------------

# what says nothing of a picture
STOP = words("""a about after all also am an and any are as at be because been before being both but
    by can could did do does each first for from had has have he her here his how i if in into is it
    its just let lets me more most my need next no not now of on one only or other our out over
    question s see she should so some step such than that the their them then there these they
    this those thus to up us very was we were what when where which while who why will with would
    you your""")
ARTICLES = words("the a an its their his her our")
SKIPPED_IN_NAMES = words(", / - – — ' \" “ ” ‘ ’ ( ) * & . < > + ` : % $ ? !")
# These are names only before a value, a mark or a word of ENDING.
WEAK_NAMES = words("a the i as some all no yes more less fewer may not or and other")
ENDING = words("and or but is are was were has had at in for while by with")
COPULAS = words("""= ≈ ~ : is are was were equals equal gives makes be about approximately roughly
    of to""")

# ---- clauses ------------------------------------------------------------------------------------

BREAKS = words(". ! ? ; so therefore thus hence then → ⇒") | {"\n"}
NAME_ENDS = words("\" ' ” ’ = : | ( *")  # behind the full stop or question mark of a name

# What follows "=" or "is" behind these is computed, not read off. The TRENDS can also be what the
# chart is about ("in Chad the average age is 20"): with one name before them, they are.
OPERATORS = words("""+ * × ÷ / - – − plus minus times divided add adds added adding subtract
    subtracted subtracting multiply multiplied""")
RESULTS = words("sum total totals difference gap combined together altogether margin product")
TRENDS = words("average mean median ratio range increase decrease rise drop decline change")
# "above 50", "step 2", "5 points", "4 countries", "3 more than" and "fell by 9" are no values.
COMPARED = words("more higher greater larger bigger less fewer lower smaller")
NOT_BEFORE = words("""above over past exceed exceeds exceeding least > ≥ below under most < ≤ per
    than step top first last question figure twice double triple half ranked ranks rank number
    place""")
DISTANCES = COMPARED | words("""points percentage pp times x countries bars categories values groups
    colors colours lines options items""")
ADVERBS = words("only just about approximately roughly around nearly almost exactly some")
CHANGED = COMPARED | words("""fell fall falls rose rise rises rising grew grow grows increased
    increases decreased decreases declined declines dropped drops changed reduced differ differs
    divided divide dividing multiplied multiply multiplying leads ahead behind up down""")

# What is asked or denied is not stated: "is A 3?", "A never has 3", "that A is 3 is wrong".
ASKING = words("""is are was were does do did can could would should what which whether suppose
    assume assuming imagine""")
DENYING = words("not never neither nor cannot hardly without nobody doubt deny denies unlikely ≠")
FALSE = words("false wrong untrue incorrect mistaken impossible myth")
STANDING = words(", : ; = but and only than") | BREAKS  # behind these a "not" denies no more

# Words that are no names: what a chart, a step or a result is called.
LINKS = words("= : | is are was were has had at ( shows reaches")
WRITTEN = words("* _ ` \" ' ” ’")  # around a name
FOLLOWING = words("percent per and or but while whereas with so % ) , ; . : | !") | {"\n", ""}
# Around a pair in a list.
PARTED = words(", ; | * - – • ( . :") | {"\n", "and", "then", "also", "while", "but", ""}
NAMELESS = STOP | words(
    """according adding again among answer answers approximately around average axis bar bars based
    between bottom calculate calculated calculation category chart check color colour combined
    compare comparison conclusion count data date difference divide dividing during either equal
    equals estimate everything figure final finally find gap given goal graph group hence high
    higher highest himself however increase label last least left legend line look looking low
    lower lowest max maximum mean means median middle min minimum none note number numbers
    observation others overall percent percentage pie point points product range rank ratio
    reading reasoning respectively rest result results right same scale second segment series
    share since slice source subtract subtracting sum table therefore third three title top total
    totals trend true two unit units value values year years yes"""
)

# ---- a value and its name -----------------------------------------------------------------------

# "68% of A", "68% said A": the name behind the value is its own; "both A and B are 3".
TYING = words("""of in for among from at with said say says saying who were are was is by belongs
    belonging which that ( voted""")
PARTING = words("and but while whereas versus vs than compared ; | then")
GUESSING = words(", / ( or to maybe perhaps possibly probably even")  # between guesses at one value
SHARING = words("both each all same tied equal equally")
