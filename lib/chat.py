"""A chat model behind a server: one question, one reply, whatever the network does.

A client of /v1/chat/completions (vLLM, llama.cpp, `transformers serve`, a public API) with retries,
a cache, a thread pool. A server that fails too often in a row is left alone for the rest of a step;
each later step tries one call. Left out: streaming, tools, redirects, Retry-After.
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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from tqdm import tqdm

from data.example import InputError, say, shorten

PARALLEL = 8  # requests at a time
# Without urllib's usual handlers every status is an answer, and a redirect's target is sent no key.
OPENER = OpenerDirector()
for handler in (ProxyHandler, HTTPHandler, HTTPSHandler):
    OPENER.add_handler(handler())


class ChatError(Exception):
    """A call without a reply: why, in one line; whether to try again."""

    def __init__(self, reason: str, retry: bool = True):
        super().__init__(shorten(reason))
        self.retry = retry


class Chat:
    """The server at flags.judge_url. InputError where it, its key, model or cache can't work."""

    timeout = 60.0  # seconds without a sign of the server
    max_retries = 4
    backoff = 1.0  # seconds before the first retry, doubled at each
    max_failures = 5  # calls in a row without a reply that make a server dead

    def __init__(self, flags, cache: str | Path = ":memory:"):
        self.url, self.model = flags.judge_url.rstrip("/"), flags.judge_model
        self.key = os.environ.get("DYME_JUDGE_KEY", "").strip()
        address = re.fullmatch(r"https?://[^/?#@\s]+/[^?#\s]+", self.url)
        if not address or not self.model or not re.fullmatch("[!-~]*", self.key):
            told = "give an address like http://127.0.0.1:8000/v1, and a model that it has"
            raise InputError(f"--judge_url, --judge_model, DYME_JUDGE_KEY: {told}")  # no secrets
        try:
            Path(cache).parent.mkdir(parents=True, exist_ok=True)
            self.cache = sqlite3.connect(cache, timeout=60, check_same_thread=False)
            columns = "key TEXT PRIMARY KEY, text TEXT, finished INTEGER"
            self.cache.execute(f"CREATE TABLE IF NOT EXISTS replies ({columns})")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{cache}: not usable as a cache ({error}); move it away") from None
        # urllib's own User-Agent is turned away by some public APIs
        self.headers = {"Content-Type": "application/json", "User-Agent": "dyme"}
        self.headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="chat")
        self.lock, self.counts = threading.Lock(), Counter()
        self.failed_in_a_row, self.last_error = 0, ""
        self.may_try = False  # set at a new step: a dead server gets one call, not repeated

    def close(self) -> None:
        """Drop the calls that haven't begun, wait for the attempts under way."""
        self.max_retries = 0
        self.pool.shutdown(cancel_futures=True)
        self.cache.close()

    def count(self, **numbers: int) -> None:
        """Add to the counts, from any thread."""
        with self.lock:
            self.counts.update(numbers)

    def first_question(self, force: bool = False) -> None:
        """InputError where a first question has no reply; with force the server is dead."""
        try:
            self.ask("Reply with one word: yes.", fresh=True)
        except ChatError as error:
            told = f"--judge_url {self.url}: doesn't answer the first question: {error}; start it"
            if not force:
                raise InputError(f"{told}; train.py has --force") from None
            self.failed_in_a_row = self.max_failures
            say(f"warning: {told}")

    def ask(
        self, prompt: str | list[dict], fresh: bool = False, max_tokens: int = 300
    ) -> tuple[str, bool]:
        """(text, whether it is whole) of a reply, a known one unless `fresh`. Raises ChatError."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        how = {"model": self.model, "temperature": 0.0, "max_tokens": max_tokens}
        body = json.dumps({"messages": messages, **how}, sort_keys=True).encode()
        key = hashlib.sha256(body).hexdigest()
        known = "SELECT text, finished FROM replies WHERE key = ?"
        with self.lock:
            found = self.cache.execute(known, (key,)).fetchone()
        if found and not fresh:
            self.count(judge_cache_hits=1)
            return found[0], bool(found[1])
        reply = self.ask_server(body)
        with self.lock, self.cache:
            self.cache.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, *reply))
        return reply

    def ask_server(self, body: bytes) -> tuple[str, bool]:
        """`post` with retries. Raises ChatError, at once where the server is dead."""
        if self.failed_in_a_row >= self.max_failures and not self.may_try:
            raise ChatError(f"{self.url} is dead: {self.last_error}")
        self.may_try = False
        for attempt in itertools.count():
            try:
                reply = self.post(body)
                self.failed_in_a_row = 0
                return reply
            except ChatError as error:
                dead = self.failed_in_a_row >= self.max_failures
                if dead or not error.retry or attempt >= self.max_retries:
                    self.last_error = str(error)
                    self.failed_in_a_row += 1
                    if self.failed_in_a_row == self.max_failures:
                        told = f"{self.url} fails, one call per step tries it again; {error}"
                        tqdm.write(f"judge: {told}", file=sys.stderr)
                    raise
                time.sleep(self.backoff * 2**attempt)

    def post(self, body: bytes) -> tuple[str, bool]:
        """One attempt: (text, finished). Raises ChatError for whatever goes wrong."""
        request = Request(f"{self.url}/chat/completions", body, self.headers)
        self.count(judge_calls=1)
        try:
            with OPENER.open(request, timeout=self.timeout) as answer:
                raw = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ChatError(f"{type(error).__name__}: {error}") from None
        if answer.status != 200:
            said = raw.decode(errors="replace")
            if self.key:  # some servers repeat a wrong one
                said = said.replace(self.key, "***")
            retry = answer.status in (408, 429) or answer.status >= 500
            raise ChatError(f"HTTP {answer.status} {said}", retry)
        try:
            reply = json.loads(raw)
            choice, usage = reply["choices"][0], reply.get("usage") or {}  # some don't say
            # a reasoning model's own thoughts name every level; lone surrogates can't be stored
            text = choice["message"]["content"].encode(errors="replace").decode()
            text = re.sub(r"<think>.*?(</think>|\Z)", "", text, flags=re.DOTALL).strip()
            self.count(tokens_in=usage.get("prompt_tokens") or 0)
            self.count(tokens_out=usage.get("completion_tokens") or 0)
            return text, choice.get("finish_reason") != "length"
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ChatError("the reply is no chat completion with a text") from None
