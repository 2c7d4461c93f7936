"""A chat model behind a server: one question, one reply, whatever the network does.

A client of the OpenAI-compatible /v1/chat/completions (vLLM, llama.cpp, `transformers serve`, a
public API) on the standard library: bounded retries, a cache on disk, a thread pool. A server that
fails too often in a row is left alone for the rest of a step; each later step tries one call. The
key comes from DYME_JUDGE_KEY and is shown in no message. Left out: streaming, tools, redirects.
"""

import hashlib
import http.client
import itertools
import json
import os
import re
import sqlite3
import sys
import threading
import time
import urllib.request
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data.example import InputError, shorten

PARALLEL = 8  # requests at a time
MAX_WAIT = 30.0  # seconds between two attempts, whatever Retry-After says


class AnyStatus(urllib.request.HTTPErrorProcessor):
    """Every status is an answer: nothing is raised, and a redirect's target isn't sent the key."""

    def http_response(self, request, response):
        return response

    https_response = http_response


OPENER = urllib.request.build_opener(AnyStatus)


class ChatError(Exception):
    """A call without a reply: why, in one line; whether to try again; Retry-After in seconds."""

    def __init__(self, reason: str, retry: bool = True, wait: float | None = None):
        super().__init__(shorten(reason))
        self.retry, self.wait = retry, wait


@dataclass
class Chat:
    """What all calls share; times in seconds. Made by `open_chat`."""

    url: str
    model: str
    key: str = field(repr=False)
    pool: ThreadPoolExecutor
    cache: sqlite3.Connection
    timeout: float = 60.0  # without a sign of the server
    max_retries: int = 3
    backoff: float = 1.0  # before the first retry, doubled at each
    max_failures: int = 5  # calls in a row without a reply that make a server dead
    failed_in_a_row: int = 0
    may_try: bool = False  # whether a dead server gets one more call in this step
    last_error: str = ""
    counts: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, **numbers: int) -> None:
        """Add to the counts, from any thread."""
        with self.lock:
            self.counts.update(numbers)


def open_chat(flags, cache: str | Path = ":memory:") -> Chat:
    """A Chat with the server that flags.judge_url and judge_model say.

    cache: an sqlite file, which several processes may share. InputError for an address, model, key
    or cache that can't work.
    """
    url, model, key = flags.judge_url, flags.judge_model, os.environ.get("DYME_JUDGE_KEY", "")
    if not re.fullmatch(r"https?://[^/?#@\s]+/[^?#\s]+", url):  # not shown: it may hold a password
        raise InputError(
            "--judge_url: give a base address like http://127.0.0.1:8000/v1; "
            "a key goes into DYME_JUDGE_KEY"
        )
    if not model:
        raise InputError("--judge_model: missing; name a model that the server at --judge_url has")
    if not re.fullmatch(r"[!-~]*", key.strip()):
        raise InputError("DYME_JUDGE_KEY: has blanks or characters that no key has; set it again")
    try:
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(cache, timeout=60, check_same_thread=False)
        columns = "key TEXT PRIMARY KEY, text TEXT, finished INTEGER"
        db.execute(f"CREATE TABLE IF NOT EXISTS replies ({columns})")
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{cache}: not usable as a cache ({error}); move it away") from None
    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="chat")
    return Chat(url.rstrip("/"), model, key.strip(), pool, db)


def close_chat(chat: Chat) -> None:
    """Drops the calls that have not begun, waits for the attempts under way, closes the cache."""
    chat.max_retries = 0
    chat.pool.shutdown(cancel_futures=True)
    chat.cache.close()


def first_question(chat: Chat, force: bool = False) -> None:
    """InputError where a first question has no reply: better now than after hours. With force a
    warning, and the server is dead.
    """
    try:
        ask(chat, "Reply with one word: yes.", fresh=True)
    except ChatError as error:
        failed = f"--judge_url {chat.url}: doesn't answer the first question: {error}"
        if not force:
            told = "start it; train.py can go by the rules until it does, with --force"
            raise InputError(f"{failed}; {told}") from None
        tqdm.write(f"{failed}; going on without it", file=sys.stderr)
        chat.failed_in_a_row = chat.max_failures


def ask(
    chat: Chat, prompt: str | list[dict], fresh: bool = False, max_tokens: int = 300
) -> tuple[str, bool]:
    """(text, finished) of the reply to a prompt or a chat's messages; cut off by max_tokens it is
    not finished. From the cache where the same model was asked the same before, unless `fresh`.
    Raises ChatError without a reply.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    body = {"model": chat.model, "messages": messages, "temperature": 0.0, "max_tokens": max_tokens}
    body = json.dumps(body, sort_keys=True).encode()
    key = hashlib.sha256(body).hexdigest()
    found = query_cache(chat, "SELECT text, finished FROM replies WHERE key = ?", key)
    if found and not fresh:
        chat.count(judge_cache_hits=1)
        return found[0], bool(found[1])
    text, finished = ask_server(chat, body)
    query_cache(chat, "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", key, text, finished)
    return text, finished


def query_cache(chat: Chat, sql: str, *values):
    """First row of a statement, or None; a cache that breaks costs calls, not the run."""
    try:
        with chat.lock, chat.cache:
            return chat.cache.execute(sql, values).fetchone()
    except sqlite3.Error as error:
        warnings.warn(f"the judge's cache fails, going on without it: {error}")  # said once


def ask_word(chat: Chat, prompt: str, words: list[str]) -> str | None:
    """The one of `words` that the reply has as a whole word; None if none or several. Raises
    ChatError.
    """
    reply, _ = ask(chat, prompt)
    # "highly" and "high-level" are not "high"
    found = re.findall(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])", reply.lower())
    return found[0] if len(set(found)) == 1 else None


def ask_server(chat: Chat, body: bytes) -> tuple[str, bool]:
    """`post` with retries. Raises ChatError, at once where the server is dead."""
    with chat.lock:
        if chat.failed_in_a_row >= chat.max_failures and not chat.may_try:
            raise ChatError(f"{chat.url} is dead: {chat.last_error}")
        chat.may_try = False
    for attempt in itertools.count():
        try:
            reply = post(chat, body)
            chat.failed_in_a_row = 0
            return reply
        except ChatError as error:
            dead = chat.failed_in_a_row >= chat.max_failures
            if error.retry and attempt < chat.max_retries and not dead:
                wait = chat.backoff * 2**attempt if error.wait is None else error.wait
                time.sleep(min(wait, MAX_WAIT))
                continue
            with chat.lock:
                chat.last_error = str(error)
                chat.failed_in_a_row += 1
                if chat.failed_in_a_row == chat.max_failures:
                    told = "fails, one call per step tries it again"
                    tqdm.write(f"judge: {chat.url} {told}; {error}", file=sys.stderr)
            raise


def try_again(chat: Chat) -> None:
    """A new step: a dead server gets one call, which is not repeated."""
    chat.may_try = True


def post(chat: Chat, body: bytes) -> tuple[str, bool]:
    """One attempt: POST `body` -> (text, finished). Raises ChatError for whatever goes wrong."""
    # urllib's own User-Agent is turned away by some public APIs
    headers = {"Content-Type": "application/json", "User-Agent": "dyme"}
    if chat.key:
        headers["Authorization"] = f"Bearer {chat.key}"
    request = urllib.request.Request(f"{chat.url}/chat/completions", body, headers)
    chat.count(judge_calls=1)
    try:
        with OPENER.open(request, timeout=chat.timeout) as answer:
            raw = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ChatError(f"{type(error).__name__}: {error}") from None
    if answer.status != 200:
        said = raw.decode(errors="replace")
        if chat.key:  # some servers repeat a wrong one
            said = said.replace(chat.key, "***")
        retry = answer.status in (408, 429) or answer.status >= 500
        wait = answer.headers.get("Retry-After", "")
        wait = float(wait) if wait.isdecimal() else None
        raise ChatError(f"HTTP {answer.status} {said}", retry, wait)
    try:
        reply = json.loads(raw)
        choice = reply["choices"][0]
        text, finished = choice["message"]["content"], choice.get("finish_reason") != "length"
        # a reasoning model's own thoughts name every level; lone surrogates can't be stored
        text = re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL)
        usage = reply.get("usage") or {}  # some servers don't say
        tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        chat.count(tokens_in=tokens_in or 0, tokens_out=tokens_out or 0)
        return text.encode(errors="replace").decode().strip(), finished
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ChatError("the reply is no chat completion with a text") from None
