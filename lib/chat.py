"""A chat model behind a server: one question, one reply, whatever the network does.

A client of the OpenAI-compatible /v1/chat/completions (vLLM, llama.cpp, `transformers serve`, a
public API) on the standard library: bounded retries, a cache on disk, a thread pool. A server that
fails too often in a row is left alone for the rest of a step; each later step tries one call.

The key comes from DYME_JUDGE_KEY, for api.openai.com also from OPENAI_API_KEY; it is read at each
call, sent to no redirect's target, and kept nowhere. Left out: streaming, tools, images.
"""

import hashlib
import http.client
import itertools
import json
import os
import random
import re
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from data.example import InputError
from lib.log import visible

MAX_BYTES = 10_000_000  # of a reply
LONGEST = 200  # characters of a server's own words in a message
JITTER = random.Random()  # its own: the training's random states must not depend on the network
REPLIES = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT, finished INTEGER)"


class ChatError(Exception):
    """A call without a reply: why, in a line or two; whether to try again; Retry-After in seconds."""

    def __init__(self, reason: str, retry: bool = True, wait: float | None = None):
        super().__init__(visible(" ".join(reason.split()))[:LONGEST])
        self.retry = retry
        self.wait = wait


@dataclass
class Chat:
    """What all calls share; times in seconds. Made by `open_chat`."""

    url: str
    model: str
    pool: ThreadPoolExecutor
    cache: sqlite3.Connection
    sampling: dict = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 300})
    timeout: float = 60.0  # of one attempt
    max_retries: int = 3
    backoff: float = 1.0  # before the first retry, doubled at each
    max_wait: float = 30.0  # cap of the backoff and of Retry-After
    max_failures: int = 5  # calls in a row without a reply that make a server dead
    failed_in_a_row: int = 0
    may_try: bool = False  # whether a dead server gets one more call in this step
    last_error: str = ""
    counts: Counter = field(default_factory=Counter)
    lock: threading.RLock = field(default_factory=threading.RLock)


def open_chat(
    url: str, model: str, *, cache: str | Path = ":memory:", parallel: int = 8, **fields
) -> Chat:
    """A Chat with `parallel` threads and its sqlite cache (a path; several processes may share it).

    `fields` are Chat's own. Raises InputError for an address, model, key or cache that can't work.
    """
    if not re.fullmatch(r"https?://[^/?#@\s]+/[^?#\s]+", url):  # not shown: it may hold a password
        raise InputError(
            "--judge_url: give a base address like http://127.0.0.1:8000/v1; "
            "a key goes into DYME_JUDGE_KEY"
        )
    if not model:
        raise InputError("--judge_model: missing; name a model that the server at --judge_url has")
    api_key(url)
    try:
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(cache, timeout=60, check_same_thread=False)
        with db:
            db.execute(REPLIES)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{cache}: not usable as a cache ({error}); move it away") from None
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="chat")
    return Chat(url.rstrip("/"), model, pool, db, **fields)


def close_chat(chat: Chat) -> None:
    """Drops the calls that have not begun, waits for the attempts under way, closes the cache."""
    chat.max_retries = 0
    chat.pool.shutdown(cancel_futures=True)
    chat.cache.close()


# ---- a question ----------------------------------------------------------------------------------


def ask(chat: Chat, messages: list[dict]) -> tuple[str, bool]:
    """(text, finished) of the reply to `messages`; finished is False where max_tokens cut it off.

    From the cache where the same model was asked the same before: `judge_cache_hits` counts these,
    `judge_calls` the attempts that went out. Raises ChatError without a reply.
    """
    body = {"model": chat.model, "messages": messages, **chat.sampling}
    key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    found = query_cache(chat, "SELECT text, finished FROM replies WHERE key = ?", key)
    if found:
        count(chat, "judge_cache_hits")
        return found[0], bool(found[1])
    text, finished = ask_server(chat, body)
    query_cache(chat, "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", key, text, finished)
    return text, finished


def ask_anything(chat: Chat) -> None:
    """One question past the cache, to see that the server answers. Raises ChatError."""
    messages = [{"role": "user", "content": "Reply with one word: yes."}]
    ask_server(chat, {"model": chat.model, "messages": messages, **chat.sampling})


def ask_word(chat: Chat, prompt: str, words: list[str]) -> str | None:
    """One of `words`, asked again once if the reply is not one; then None. Raises ChatError."""
    messages = [{"role": "user", "content": prompt}]
    reply, _ = ask(chat, messages)
    word = one_word(reply, words)
    if word is None:
        # as a dialogue: the same question would get the same reply, and from the cache
        messages.append({"role": "assistant", "content": reply or "-"})
        again = f"Reply with one word only: {', '.join(words)}."
        messages.append({"role": "user", "content": again})
        word = one_word(ask(chat, messages)[0], words)
    return word


def one_word(reply: str, words: list[str]) -> str | None:
    """The one of `words` that occurs as a whole word in any case; None when none or several do."""
    # "highly" and "high-level" are not "high"
    found = re.findall(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])", reply, re.IGNORECASE)
    found = {word.lower() for word in found}
    return found.pop() if len(found) == 1 else None


# ---- retries, and a server that is dead ----------------------------------------------------------


def ask_server(chat: Chat, body: dict) -> tuple[str, bool]:
    """`post` with retries. Raises ChatError, at once where the server is dead."""
    with chat.lock:
        if is_dead(chat) and not chat.may_try:
            raise ChatError(f"{chat.url} is dead: {chat.last_error}")
        chat.may_try = False
    for attempt in itertools.count():
        try:
            reply = post(chat, body)
            note(chat)
            return reply
        except ChatError as error:
            if not error.retry or attempt >= chat.max_retries or is_dead(chat):
                note(chat, error)
                raise
            backoff = chat.backoff * 2**attempt * JITTER.uniform(0.5, 1.0)
            time.sleep(min(backoff if error.wait is None else error.wait, chat.max_wait))


def is_dead(chat: Chat) -> bool:
    """True after `max_failures` calls in a row without a reply, until there is one again."""
    return chat.failed_in_a_row >= chat.max_failures


def try_again(chat: Chat) -> None:
    """A new step: a dead server gets one call, which is not repeated."""
    chat.may_try = True


def note(chat: Chat, error: ChatError | None = None) -> None:
    """Counts failures in a row; says when the server dies, and when it answers again."""
    with chat.lock:
        was_dead, chat.last_error = is_dead(chat), str(error or chat.last_error)
        chat.failed_in_a_row = chat.failed_in_a_row + 1 if error else 0
        dead = is_dead(chat)
    if dead and not was_dead:
        failed = f"failed {chat.max_failures} times in a row, last: {error}"
        say(f"judge: {chat.url} {failed}; the rules take over, one call per step tries it again")
    if was_dead and not dead:
        say(f"judge: {chat.url} answers again")


# ---- one attempt ---------------------------------------------------------------------------------


def post(chat: Chat, body: dict) -> tuple[str, bool]:
    """One attempt: POST `body` -> (text, finished). Raises ChatError for whatever goes wrong."""
    request = urllib.request.Request(f"{chat.url}/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    request.add_header("User-Agent", "dyme")  # urllib's own is turned away by some public APIs
    key = api_key(chat.url)
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    count(chat, "judge_calls")
    try:
        try:
            answer = urllib.request.urlopen(request, timeout=chat.timeout)
        except urllib.error.HTTPError as error:
            answer = error  # a status other than 2xx, with its own headers and body
        with answer:
            raw = read_body(answer, time.monotonic() + chat.timeout)
    except (OSError, http.client.HTTPException) as error:
        raise ChatError(f"{type(error).__name__}: {error}") from None
    if answer.status != 200:
        reason = mask(raw[: 4 * LONGEST].decode(errors="replace"), key)
        retry = answer.status in (408, 429) or answer.status >= 500
        wait = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*", answer.headers.get("Retry-After", ""))
        raise ChatError(f"HTTP {answer.status} {reason}", retry, wait and float(wait[1]))
    return read_reply(raw)


def read_body(answer, deadline: float) -> bytes:
    """A reply's bytes; TimeoutError past the deadline (a socket's starts anew at each byte)."""
    raw = b""
    while chunk := answer.read1(65536):
        raw += chunk
        if time.monotonic() > deadline or len(raw) > MAX_BYTES:
            raise TimeoutError("the reply does not end")
    return raw


def read_reply(raw: bytes) -> tuple[str, bool]:
    """(text, finished) of a chat completion's JSON; ChatError if it is none."""
    try:
        choice = json.loads(raw)["choices"][0]
        text = choice["message"]["content"]
        reason = choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ChatError("the reply is no chat completion") from None
    if not isinstance(text, str):
        raise ChatError(f"the reply has no text (finish_reason {reason})")
    # a reasoning model's own thoughts name every level; lone surrogates can't be stored
    text = re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL)
    return text.encode(errors="replace").decode().strip(), reason != "length"


def mask(text: str, key: str) -> str:
    """A text without the key, nor 8 characters of it in a row: some servers repeat a wrong one."""
    size = min(len(key), 8)
    starts = range(len(text) - size + 1) if key else []
    hidden = {
        i + n for i in starts if text[i : i + size].lower() in key.lower() for n in range(size)
    }
    return "".join("*" if i in hidden else char for i, char in enumerate(text))


def api_key(url: str) -> str:
    """The environment's key for this address, or "". Raises InputError if it can't be one."""
    key = os.environ.get("DYME_JUDGE_KEY", "")
    if not key and urlsplit(url).hostname == "api.openai.com":
        key = os.environ.get("OPENAI_API_KEY", "")
    if not re.fullmatch(r"[!-~]*", key.strip()):
        raise InputError("DYME_JUDGE_KEY: has blanks or characters that no key has; set it again")
    return key.strip()


# ---- the cache, the counts -----------------------------------------------------------------------


def query_cache(chat: Chat, sql: str, *values):
    """First row of a statement, or None; a cache that breaks costs calls, not the run."""
    try:
        with chat.lock, chat.cache:
            return chat.cache.execute(sql, values).fetchone()
    except sqlite3.Error as error:
        if not chat.counts["cache_errors"]:
            say(f"judge: the cache fails ({error}), going on without it")
        count(chat, "cache_errors")
        return None


def count(chat: Chat, name: str, amount: float = 1) -> None:
    """Adds to one of the counts, from any thread."""
    with chat.lock:
        chat.counts[name] += amount


def say(line: str) -> None:
    """One line on stderr that leaves a progress bar whole."""
    tqdm.write(line, file=sys.stderr)


def take_counts(chat: Chat, names: tuple[str, ...]) -> dict[str, float]:
    """Some of the counts since the last time."""
    with chat.lock:
        return {name: chat.counts.pop(name, 0) for name in names}
