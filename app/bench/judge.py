"""A judge: a language model behind an OpenAI-compatible endpoint, which says how good an answer is.

Its key comes from the environment variable OPENAI_API_KEY; a local server may need none. It is asked at temperature 0
for a few tokens; a model that refuses to be asked so is asked without. What it replies is text that nobody may trust,
so whoever marks reads it with care. This module knows nothing of benchmarks, nor of files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from vstream.app.progress import printable

RETRIES, TIMEOUT_SECONDS, CONNECT_SECONDS, SHOWN_CHARS = 4, 120.0, 10.0, 200
MAX_REPLY_CHARS = 10_000
SHORT: dict[str, Any] = {"temperature": 0.0, "max_tokens": 300}
REASONING: dict[str, Any] = {"max_completion_tokens": 4096}
"""Models that reason take neither a temperature nor `max_tokens`, and need room for their reasoning."""
NO_KEY = "none"
UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class JudgeError(RuntimeError):
    """There is no reply.

    Attributes:
        hopeless: whether any other prompt would fare the same.
    """

    def __init__(self, sentence: str, *, hopeless: bool) -> None:
        """`sentence` is for people."""
        super().__init__(sentence)
        self.hopeless = hopeless


def check_url(url: str) -> None:
    """Raises `ValueError` for what is no endpoint's base URL, or holds a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--judge must be an endpoint's base URL, http:... and mostly ending in /v1, got {url}")
    if parts.username or parts.password or parts.query:
        raise ValueError("--judge must be a URL without name, password or query; a key goes into OPENAI_API_KEY")


@dataclass
class Judge:
    """A model at an endpoint; several threads may ask at once.

    Attributes:
        url: the endpoint's base URL.
        model: its name there.
    """

    url: str
    model: str
    _client: Any = field(init=False, repr=False)
    _way: dict[str, Any] = field(init=False, repr=False, default_factory=lambda: SHORT)

    def __post_init__(self) -> None:
        """Raises `ValueError` for a URL that will not do, `RuntimeError` if the client is not installed."""
        check_url(self.url)
        key = os.environ.get("OPENAI_API_KEY") or NO_KEY
        timeout = _openai().Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
        http = _openai().DefaultHttpxClient(follow_redirects=False)  # answers go to nobody else
        self._client = _openai().OpenAI(
            base_url=self.url, api_key=key, max_retries=RETRIES, timeout=timeout, http_client=http
        )

    @property
    def host(self) -> str:
        """Of the endpoint."""
        return urlsplit(self.url).hostname or ""

    def ask(self, prompt: str) -> str:
        """What is replied to a prompt; a server's passing trouble is waited out.

        Raises:
            JudgeError: if there is no reply.
        """
        openai = _openai()
        try:
            completion = self._complete(prompt.encode(errors="replace").decode())  # lone surrogates are not sent
        except openai.OpenAIError as error:
            raise self._told(error) from error
        except (ValueError, RecursionError) as error:  # JSON that is none
            raise self._is_none() from error
        return self._text_of(completion)

    def _complete(self, prompt: str) -> Any:
        openai, way = _openai(), self._way
        messages = [{"role": "user", "content": prompt}]
        try:
            return self._client.chat.completions.create(model=self.model, messages=messages, **way)
        except openai.BadRequestError as error:
            if error.param not in way or way is REASONING:
                raise
        self._way = REASONING
        return self._client.chat.completions.create(model=self.model, messages=messages, **REASONING)

    def _text_of(self, completion: Any) -> str:
        """The reply within, whose fields may be anything."""
        try:
            text, reason = completion.choices[0].message.content, completion.choices[0].finish_reason
        except UNREADABLE as error:
            raise self._is_none() from error
        if not isinstance(text, str) or not text.strip():
            raise JudgeError(f"the judge {self.model} said nothing ({reason})"[:SHOWN_CHARS], hopeless=False)
        return text[:MAX_REPLY_CHARS]

    def _is_none(self) -> JudgeError:
        what = "it sends no chat completions; is --judge its base URL, which mostly ends in /v1?"
        return JudgeError(f"what answers at {self.url} is no judge: {what}", hopeless=True)

    def _told(self, error: Any) -> JudgeError:
        """What went wrong, in a sentence."""
        openai = _openai()
        if isinstance(error, openai.APITimeoutError):
            return JudgeError(f"the judge at {self.url} did not answer within {TIMEOUT_SECONDS:.0f} s", hopeless=True)
        if isinstance(error, openai.APIConnectionError):
            return JudgeError(f"no judge can be reached at {self.url}; is it running there?", hopeless=True)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            what = f"refuses the key ({error.status_code}); set OPENAI_API_KEY to one that it takes"
            return JudgeError(f"the judge at {self.url} {what}", hopeless=True)
        if isinstance(error, openai.APIStatusError) and 300 <= error.status_code < 400:
            place = printable(error.response.headers.get("location", "nowhere"))[:SHOWN_CHARS]
            what = f"sends requests elsewhere, to {place}; give the base URL there as --judge if you trust it"
            return JudgeError(f"the judge at {self.url} {what}", hopeless=True)
        said = printable(" ".join(str(error).split()))[:SHOWN_CHARS]
        if isinstance(error, openai.NotFoundError):
            what = f"there is no model {self.model} at {self.url}, or --judge is not its base URL: {said}"
            return JudgeError(what, hopeless=True)
        return JudgeError(f"the judge at {self.url} failed: {said}", hopeless=False)


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise RuntimeError(
            "a judge is asked through the package openai, which is missing; install it: pip install 'vstream[bench]'"
        ) from error
    return openai
