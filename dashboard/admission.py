"""Who may look at the dashboard: what the settings say, what the server refuses to start with, and who is let in."""

from __future__ import annotations

import hmac
import ipaddress
import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PASSWORD = "CONVSWEEP_DASHBOARD_PASSWORD"
"""The environment variable with the password: arguments can be seen by every user of the machine."""

SHORTEST_PASSWORD = 12
SHORTEST_COOKIE_SECRET = 32
MOST_WRONG = 5
WRONG_SECONDS = 60.0


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address: 127.0.0.0/8, ::1 and localhost; no other name is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, kw_only=True)
class OpenIdConnect:
    """The login with accounts of an OpenID Connect provider, by `st.login`."""

    providers: tuple[str, ...]
    """As `st.login` takes them; `default` is the one in the section [auth] itself."""

    redirect_uri: str
    cookie_secret: str = field(repr=False)
    allowed: tuple[str, ...] = ()
    """Addresses, and domains with their @, that may look; empty: every account that the provider lets in."""

    def refusal(self, claims: Mapping[str, Any]) -> str | None:
        """Why the account that the provider's `claims` describe may not look; None when it may."""
        if not self.allowed:
            return None
        email = claims.get("email")
        if not isinstance(email, str) or email.count("@") != 1:
            return "The provider does not say which e-mail address this account has."
        if str(claims.get("email_verified", True)).lower() != "true":
            return "The provider has not verified the e-mail address of this account."
        name, domain = email.split("@")
        if name and {_folded(email), _folded(f"@{domain}")} & {_folded(entry) for entry in self.allowed}:
            return None
        return "This account is not among those that may look at the dashboard."


@dataclass(frozen=True, kw_only=True)
class Admission:
    """How a reader is let in: by a password, by an account, by either of them, or without a login."""

    password: str | None = field(default=None, repr=False)
    accounts: OpenIdConnect | None = None

    @property
    def needs_login(self) -> bool:
        """Whether a reader has to log in."""
        return self.password is not None or self.accounts is not None

    def check(self, host: str) -> None:
        """Raises ValueError when a server that listens on `host` would let in whom nobody meant to."""
        if self.password is not None and len(self.password) < SHORTEST_PASSWORD:
            raise ValueError(
                f"{PASSWORD} must have at least {SHORTEST_PASSWORD} characters, but has {len(self.password)}. "
                'Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        if not self.needs_login and not is_loopback(host):
            raise ValueError(
                f"On {host} others could read the sweeps, so the dashboard starts there only with a login. Set {PASSWORD} "
                f"to at least {SHORTEST_PASSWORD} characters, or configure st.login in the section [auth] of "
                ".streamlit/secrets.toml. Without --host it listens on 127.0.0.1, which an SSH tunnel reaches."
            )
        if self.accounts is not None:
            _check_accounts(self.accounts, host)


def _check_accounts(accounts: OpenIdConnect, host: str) -> None:
    # A proxy in front of a server on the loopback address is betrayed by where the provider sends the readers back to.
    home = urlsplit(accounts.redirect_uri).hostname or ""
    if is_loopback(host) and is_loopback(home):
        return
    where = home if is_loopback(host) else host
    if not accounts.allowed:
        raise ValueError(
            f"On {where} every account that the provider knows could read the sweeps, and some providers know everybody. "
            "Say in .streamlit/secrets.toml who may, by addresses or domains: in the section [convsweep], "
            'allowed = ["ann@example.org", "@example.org"]'
        )
    if len(accounts.cookie_secret) < SHORTEST_COOKIE_SECRET:
        raise ValueError(
            f"On {where} the cookie_secret in the section [auth] of .streamlit/secrets.toml must have at least "
            f"{SHORTEST_COOKIE_SECRET} characters, but has {len(accounts.cookie_secret)}: whoever guesses it is let in "
            'under any name. Make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )


def read(environment: Mapping[str, str], secrets: Mapping[str, Any]) -> Admission:
    """What the environment and Streamlit's secrets say; an empty password counts as none.

    Raises ValueError when the secrets have a mistake that st.login would only show to a reader.
    """
    return Admission(password=environment.get(PASSWORD) or None, accounts=_read_accounts(secrets))


def _read_accounts(secrets: Mapping[str, Any]) -> OpenIdConnect | None:
    allowed = _read_allowed(secrets.get("convsweep", {}))
    auth = secrets.get("auth")
    if auth is None:
        if allowed:
            raise ValueError(
                "The section [convsweep] of .streamlit/secrets.toml says which accounts are allowed, but there is no "
                "section [auth], so nobody can log in with one. Add it, as st.login needs it, or take the list away."
            )
        return None
    if not isinstance(auth, Mapping):
        raise ValueError(f"auth in .streamlit/secrets.toml must be a section, but is {type(auth).__name__}.")
    _require(auth, "[auth]", "redirect_uri", "cookie_secret")
    sections = {name: part for name, part in auth.items() if isinstance(part, Mapping) and name != "client_kwargs"}
    if "client_id" in auth or not sections:
        sections.setdefault("default", auth)
    for name, section in sections.items():
        title = "[auth]" if section is auth else f"[auth.{name}]"
        if "_" in name:
            raise ValueError(f"The name of a provider must be without underscores, but got {title}.")
        _require(section, title, "client_id", "client_secret", "server_metadata_url")
    return OpenIdConnect(
        providers=tuple(sections),
        redirect_uri=auth["redirect_uri"],
        cookie_secret=auth["cookie_secret"],
        allowed=allowed,
    )


def _require(section: Mapping[str, Any], title: str, *keys: str) -> None:
    missing = [key for key in keys if not isinstance(section.get(key), str) or not section[key]]
    if missing:
        raise ValueError(
            f"The section {title} of .streamlit/secrets.toml needs {', '.join(keys)} as texts, but lacks {', '.join(missing)}."
        )


def _read_allowed(section: Any) -> tuple[str, ...]:
    unknown = sorted(set(section) - {"allowed"}) if isinstance(section, Mapping) else [str(section)]
    if unknown:
        raise ValueError(
            f"The section [convsweep] of .streamlit/secrets.toml has only `allowed`, but got {', '.join(unknown)}."
        )
    if "allowed" not in section:
        return ()
    allowed = section["allowed"]
    if not isinstance(allowed, list) or not allowed or not all(_is_address_or_domain(entry) for entry in allowed):
        raise ValueError(
            'allowed in .streamlit/secrets.toml is a list of addresses such as "ann@example.org" and of domains such as '
            f'"@example.org", but got {allowed!r}.'
        )
    return tuple(allowed)


def _is_address_or_domain(entry: Any) -> bool:
    if not isinstance(entry, str) or entry.count("@") != 1 or any(c.isspace() for c in entry):
        return False
    return bool(entry.split("@")[1]) and "*" not in entry


def _folded(address: str) -> str:
    # Only within ASCII: there are letters elsewhere that become ASCII ones in lower case, such as the Kelvin sign.
    return address.lower() if address.isascii() else address


class PasswordGate:
    """Compares what all readers of a process enter; after 5 wrong passwords in a minute it compares none for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: deque[float] = deque(maxlen=MOST_WRONG)

    def refusal(self, entered: str, password: str, now: float) -> str | None:
        """Why the reader is not let in; None when what was entered is the password. `now` in seconds, never backwards."""
        with self._lock:  # also during the comparison, so that tries side by side count as if one came after the other
            if len(self._wrong) == MOST_WRONG:
                wait = self._wrong[0] + WRONG_SECONDS - now
                if wait > 0:
                    return f"There were too many wrong passwords. Try again in {math.ceil(wait)} s."
            if hmac.compare_digest(_encoded(entered), _encoded(password)):
                return None
            self._wrong.append(now)
            return "That is not the password."


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # an environment variable may hold bytes that are no UTF-8
