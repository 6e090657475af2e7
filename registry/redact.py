"""Keep secrets out of everything that is recorded.

Two nets. By value: whatever an environment variable named like `*TOKEN`, `*KEY`, `*SECRET` or
`*PASSWORD` holds is replaced wherever it turns up. By shape: URL passwords, `NAME=value`,
`--name value` and `"name": "value"` where the name reads like a secret, `Bearer ...`, private key
blocks and the tokens of well-known services.

Does not cover: secrets of another shape that were never in the environment, values of fewer than
six characters (they would blot out ordinary text), secrets split or encoded by the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

REDACTED = "[redacted]"
_MIN_SECRET_LEN = 6
_MAX_TEXT_LEN = 1024 * 1024  # characters; logging must not wait for a search through more
_MAX_DEPTH = 64  # nobody nests a config deeper; recursion stays bounded

_VARIABLE = re.compile(
    r".*(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?$", re.IGNORECASE | re.DOTALL
)
# A bare "key" is the word of dictionaries, sorting and config paths; it needs something before it.
_NAME = (
    r"(?:[A-Za-z0-9_.\-]*[A-Za-z0-9][_\-.]?KEY"
    r"|[A-Za-z0-9_.\-]*(?:TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?))"
)
_WORDS = ("token", "key", "secret", "password", "passwd", "passphrase", "credential")
_SENSITIVE_NAME = re.compile(rf"-{{0,2}}{_NAME}", re.IGNORECASE)
_COUNTABLE_NAME = re.compile(r".*(?:TOKEN|KEY)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?[\d.,_]+(?:e[-+]?\d+)?%?", re.IGNORECASE)
_HARMLESS = r"(?!\[redacted\])(?!(?:true|false|none|null)\b)"
_QUOTED = r"\"(?:[^\"\\\n]|\\.)+\"|'(?:[^'\\\n]|\\.)+'|\\\"(?:[^\"\\\n]|\\[^\"])+\\\""
_ASSIGNMENT = re.compile(
    rf"(?<![A-Za-z0-9_.\-])(?P<head>(?:\\?[\"'])?(?P<name>{_NAME})(?:\\?[\"'])?\s{{0,4}}[=:]\s{{0,4}})"
    rf"(?P<value>{_QUOTED}|{_HARMLESS}[^\s\"',;&}})\]]+)",
    re.IGNORECASE,
)
_FLAG = re.compile(
    rf"(?<!\S)(?P<head>--?(?P<name>{_NAME})\s{{1,4}})"
    rf"(?P<value>{_QUOTED}|{_HARMLESS}[^\s\-\"'][^\s\"']*)",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(
    r"(?P<head>[A-Za-z][A-Za-z0-9+.\-]{0,30}://[^\s/:@\"']{0,256}:)(?P<value>[^\s/\"']{1,1024})@"
)
# In a malformed URL the password may be anywhere between the first colon and the last "@".
_UNPARSED_PASSWORD = re.compile(r":(?!//).*@", re.DOTALL)
_BEARER = re.compile(r"(?P<head>\b(?:Bearer|Basic)\s{1,4})(?P<value>[A-Za-z0-9._~+/\-]{12,}=*)")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[posur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_\-]{20,}|sk-[A-Za-z0-9_\-]{20,}|AKIA[A-Z0-9]{16})\b"
)


class Redactor:
    """Replaces secrets with "[redacted]" in text, argument lists and plain data."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long_enough = {secret for secret in secrets if len(secret) >= _MIN_SECRET_LEN}
        ordered = sorted(long_enough, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Redactor:
        """Return a redactor that knows the values of the variables named like secrets."""
        found: set[str] = set()
        for name, value in environ.items():
            if _VARIABLE.match(name):
                found.update((value, value.strip()))
        return cls(found)

    def text(self, text: str) -> str:
        """Return `text` without secrets; what is beyond 1 MiB of it is cut off."""
        if len(text) > _MAX_TEXT_LEN:
            left_out = len(text) - _MAX_TEXT_LEN
            text = f"{text[:_MAX_TEXT_LEN]}[{left_out} characters left out]"
        if self._secrets is not None:
            text = self._secrets.sub(REDACTED, text)
        if "PRIVATE KEY" in text:
            text = _PRIVATE_KEY.sub(REDACTED, text)
        if "://" in text:
            text = _URL_PASSWORD.sub(rf"\g<head>{REDACTED}@", text)
        text = _KNOWN_TOKEN.sub(REDACTED, text)
        text = _BEARER.sub(rf"\g<head>{REDACTED}", text)
        lowered = text.lower()
        if any(word in lowered for word in _WORDS):  # far cheaper than the searches it spares
            text = _ASSIGNMENT.sub(_keep_quotes, text)
            text = _FLAG.sub(_keep_quotes, text)
        return text

    def argv(self, arguments: Iterable[str]) -> list[str]:
        """Return a command line without secrets, one argument for one argument."""
        safe: list[str] = []
        flag = ""  # the argument before, where its value is a secret
        for argument in map(str, arguments):
            if flag and not argument.startswith("--"):
                safe.append(REDACTED if _is_secret(flag, argument) else argument)
                flag = ""
                continue
            flag = argument if argument.startswith("-") and is_sensitive(argument) else ""
            safe.append(self.text(argument))
        return safe

    def data(self, data: Any) -> Any:
        """Return plain data without secrets: dicts, lists, tuples, text; the rest as it is."""
        return self._data(data, _MAX_DEPTH)

    def _data(self, data: Any, depth: int) -> Any:
        """Return `data` without secrets, at most `depth` levels of it."""
        if isinstance(data, str):
            return self.text(data)
        if not isinstance(data, dict | list | tuple):
            return data
        if depth == 0:
            return "[nested too deep]"
        if isinstance(data, dict):
            return {
                self.text(key) if isinstance(key, str) else key: (
                    REDACTED
                    if isinstance(value, str) and value and is_sensitive(key)
                    else self._data(value, depth - 1)
                )
                for key, value in data.items()
            }
        return [self._data(item, depth - 1) for item in data]


def hide_url_password(url: str) -> str:
    """Return a URL, malformed or not, without what may be its password."""
    return _UNPARSED_PASSWORD.sub(f":{REDACTED}@", url)


def is_sensitive(name: object) -> bool:
    """Tell whether a flag or key of this name holds a secret; a bare "key" does not."""
    return isinstance(name, str) and len(name) <= 256 and bool(_SENSITIVE_NAME.fullmatch(name))


def _is_secret(name: str, value: str) -> bool:
    """Tell a secret from a count: "flops_per_token=297345" is a number, a password may be one."""
    return not (_NUMBER.fullmatch(value) and _COUNTABLE_NAME.fullmatch(name))


def _keep_quotes(match: re.Match[str]) -> str:
    """Return the match with its value redacted and its quotes kept."""
    value = match["value"]
    quote = next((mark for mark in ('\\"', '"', "'") if value.startswith(mark)), "")
    if not _is_secret(match["name"], value):
        return match[0]
    return f"{match['head']}{quote}{REDACTED}{quote}"
