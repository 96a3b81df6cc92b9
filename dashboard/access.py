"""The login in front of the pages, when a password or an OpenID Connect provider is configured."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from dashboard import admission
from dashboard.admission import Admission, OpenIdConnect, PasswordGate

# Of the process and not in `st.cache_resource`: every visitor's browser may ask the server to clear that.
_gate = PasswordGate()

_LET_IN = "access: the password was right"
_REFUSAL = "access: why not"
_ENTERED = "access: password"


def configured() -> Admission:
    """How readers are let in, from this process's environment and Streamlit's secrets.

    Raises ValueError when the secrets cannot be read or have a mistake.
    """
    return admission.read(os.environ, _secrets())


def check_start(host: str) -> Admission:
    """How readers of a server on `host` are let in; ValueError says why it must not start."""
    found = configured()
    found.check(host)
    if found.accounts is not None and not _can_use_accounts():
        raise ValueError(
            "The section [auth] of .streamlit/secrets.toml asks for a login with accounts, which needs Authlib and httpx. "
            "Install them with: pip install 'convsweep[oidc]'"
        )
    return found


def require_login() -> None:
    """Show the login and end the run unless the reader may look; in the sidebar, let who is in log out.

    Without a password or a provider it does nothing.
    """
    # The secrets may have been changed since the start; the address is unset where no server runs.
    try:
        found = configured()
        found.check(st.get_option("server.address") or "localhost")
    except ValueError:
        st.error("The dashboard is not shown: its login is not configured as it must be. Starting it again says why.")
        st.stop()
    if not found.needs_login:
        return
    if found.password is not None and _LET_IN in st.session_state:
        _offer_to_log_out()
    elif found.accounts is not None and st.user.get("is_logged_in"):
        _require_allowed_account(found.accounts)
    else:
        _show_login(found)
        st.stop()


def _show_login(found: Admission) -> None:
    # Under the path that was asked for, so that the reader is there after the login; and no longer under the pages' menu.
    form = partial(_login, found)
    pages = [st.Page(form, title="convsweep", url_path="login", default=True)]
    asked = re.search(r"/([a-z]+)$", urlsplit(st.context.url or "").path)
    if asked is not None:
        pages.append(st.Page(form, title="convsweep", url_path=asked[1]))
    st.navigation(pages, position="hidden").run()


def _login(found: Admission) -> None:
    with st.container(horizontal_alignment="center"), st.container(width=400):
        st.title("convsweep")
        if found.password is not None:
            _show_password_form()
        for provider in found.accounts.providers if found.accounts else ():
            label = f"Log in with {'an account' if provider == 'default' else provider}"
            st.button(label, key=f"access: {provider}", on_click=st.login, args=(provider,), width="stretch")


def _show_password_form() -> None:
    with st.form("access"):
        st.text_input("Password", type="password", autocomplete="current-password", key=_ENTERED)
        st.form_submit_button("Log in", on_click=_try_password, type="primary", width="stretch")
    if _REFUSAL in st.session_state:
        st.error(st.session_state[_REFUSAL])


def _try_password() -> None:
    entered = st.session_state[_ENTERED]
    st.session_state[_ENTERED] = ""  # not kept, in the server's memory or in the browser
    refusal = _gate.refusal(entered, os.environ[admission.PASSWORD], time.monotonic())
    if refusal is None:
        st.session_state[_LET_IN] = True
        st.session_state.pop(_REFUSAL, None)
    else:
        st.session_state[_REFUSAL] = refusal


def _require_allowed_account(accounts: OpenIdConnect) -> None:
    claims = st.user.to_dict()
    refusal = accounts.refusal(claims)
    if refusal is not None:
        st.error(f"{refusal} Log out to take another one.")
    _offer_to_log_out(str(claims.get("email", "")))
    if refusal is not None:
        st.stop()


def _offer_to_log_out(account: str = "") -> None:
    with st.sidebar:
        if account:
            st.text(account)
        st.button("Log out", key="access: log out", on_click=_log_out)


def _log_out() -> None:
    by_account = bool(st.user.get("is_logged_in"))
    st.session_state.clear()  # with everything that the pages kept for this reader
    if by_account:
        st.logout()


def _can_use_accounts() -> bool:
    found = {name for name in ("authlib", "httpx", "httpx2") if importlib.util.find_spec(name) is not None}
    return "authlib" in found and len(found) > 1  # Authlib takes either


def _secrets() -> dict[str, Any]:
    try:
        return st.secrets.to_dict()
    except StreamlitSecretNotFoundError as error:
        # The same error stands for no file and for a broken one, and a broken one must not mean that there is no login.
        if any(Path(file).exists() for file in st.get_option("secrets.files")):
            raise ValueError(str(error)) from error
        return {}
