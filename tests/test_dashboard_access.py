"""Who may look at the dashboard: `python -m pytest tests/test_dashboard_access.py -q`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.studies import Studies
from dashboard import access, admission, settings
from dashboard.admission import Admission, OpenIdConnect, PasswordGate

APP = Path(access.__file__).with_name("app.py")
PASSWORD = "correct horse battery"
COOKIE_SECRET = "a random text of at least 32 characters"
AUTH = {
    "redirect_uri": "http://localhost:8501/oauth2callback",
    "cookie_secret": COOKIE_SECRET,
    "client_id": "convsweep",
    "client_secret": "between the provider and us",
    "server_metadata_url": "https://accounts.example.org/.well-known/openid-configuration",
}
ANN = {"is_logged_in": True, "email": "ann@example.org", "email_verified": True}
ACCOUNTS = OpenIdConnect(providers=("default",), redirect_uri=AUTH["redirect_uri"], cookie_secret=COOKIE_SECRET)


# ---- what the settings say ----


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_addresses_that_only_this_machine_reaches(host: str) -> None:
    assert admission.is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.0.7", "128.0.0.1", "localhost.example.org", "127.0.0.1.nip.io", ""]
)
def test_addresses_that_others_may_reach(host: str) -> None:
    assert not admission.is_loopback(host)


def test_without_settings_there_is_no_login() -> None:
    assert admission.read({admission.PASSWORD: ""}, {}) == Admission()
    assert not Admission().needs_login
    Admission().check("127.0.0.1")


def test_the_password_comes_from_the_environment_and_is_in_no_representation() -> None:
    found = admission.read({admission.PASSWORD: PASSWORD}, {"auth": AUTH})
    assert found.password == PASSWORD
    assert found.needs_login
    assert PASSWORD not in repr(found)
    assert COOKIE_SECRET not in repr(found)


@pytest.mark.parametrize(
    ("auth", "providers"),
    [
        (AUTH, ("default",)),
        (AUTH | {"client_kwargs": {"prompt": "login"}}, ("default",)),
        (AUTH | {"google": AUTH}, ("google", "default")),
        (
            {key: AUTH[key] for key in ("redirect_uri", "cookie_secret")} | {"okta": AUTH, "google": AUTH},
            ("okta", "google"),
        ),
    ],
)
def test_the_providers_are_those_that_st_login_takes(auth: Mapping[str, Any], providers: tuple[str, ...]) -> None:
    accounts = admission.read({}, {"auth": auth}).accounts
    assert accounts is not None
    assert accounts.providers == providers


@pytest.mark.parametrize(
    ("secrets", "why"),
    [
        ({"auth": "yes"}, "must be a section, but is str"),
        ({"auth": {}}, "lacks redirect_uri, cookie_secret"),
        ({"auth": AUTH | {"cookie_secret": ""}}, "lacks cookie_secret"),
        ({"auth": AUTH | {"client_id": 7}}, r"\[auth\] .* lacks client_id"),
        ({"auth": {key: AUTH[key] for key in ("redirect_uri", "cookie_secret")}}, "lacks client_id, client_secret"),
        ({"auth": AUTH | {"okta": {"client_id": "x"}}}, r"\[auth.okta\] .* lacks client_secret, server_metadata_url"),
        ({"auth": AUTH | {"our_own": AUTH}}, r"without underscores, but got \[auth.our_own\]"),
        ({"convsweep": {"allowed": ["@example.org"]}}, r"there is no section \[auth\]"),
        ({"auth": AUTH, "convsweep": {"allow": ["@example.org"]}}, "has only `allowed`, but got allow"),
        ({"auth": AUTH, "convsweep": "ann@example.org"}, "has only `allowed`, but got ann@example.org"),
        *(
            ({"auth": AUTH, "convsweep": {"allowed": allowed}}, "is a list of addresses")
            for allowed in (
                [],
                "@example.org",
                ["example.org"],
                ["*@example.org"],
                ["ann@"],
                ["@"],
                ["a @b"],
                [7],
                ["a@b@c"],
            )
        ),
    ],
)
def test_a_mistake_in_the_secrets_is_said(secrets: Mapping[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        admission.read({}, secrets)


# ---- what the server refuses to start with ----


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "machine.example.org"])
def test_without_a_login_only_this_machine_is_served(host: str) -> None:
    with pytest.raises(ValueError, match=f"On {host} .* CONVSWEEP_DASHBOARD_PASSWORD .* 12 characters, .* st.login"):
        Admission().check(host)
    Admission(password=PASSWORD).check(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_short_password_is_refused_on_every_host_and_not_shown(host: str) -> None:
    with pytest.raises(ValueError, match="at least 12 characters, but has 11") as refused:
        Admission(password="elevenchars").check(host)
    assert "elevenchars" not in str(refused.value)
    Admission(password="twelve chars").check(host)


def test_accounts_need_a_list_of_those_who_may_where_others_reach_the_server() -> None:
    Admission(accounts=ACCOUNTS).check("127.0.0.1")
    with pytest.raises(ValueError, match=r"On 0.0.0.0 every account .* allowed = \["):
        Admission(accounts=ACCOUNTS).check("0.0.0.0")
    with pytest.raises(ValueError, match=r"On 0.0.0.0 every account"):
        Admission(accounts=ACCOUNTS, password=PASSWORD).check("0.0.0.0")
    Admission(accounts=replace(ACCOUNTS, allowed=("@example.org",))).check("0.0.0.0")


def test_a_server_behind_a_proxy_counts_as_one_that_others_reach() -> None:
    behind = replace(ACCOUNTS, redirect_uri="https://sweeps.example.org/oauth2callback")
    with pytest.raises(ValueError, match=r"On sweeps.example.org every account"):
        Admission(accounts=behind).check("127.0.0.1")
    Admission(accounts=replace(behind, allowed=("@example.org",))).check("127.0.0.1")


def test_a_cookie_secret_that_can_be_guessed_is_refused_where_others_reach_the_server() -> None:
    weak = replace(ACCOUNTS, cookie_secret="xxx", allowed=("@example.org",))
    Admission(accounts=weak).check("127.0.0.1")
    with pytest.raises(ValueError, match=r"cookie_secret .* at least 32 characters, but has 3"):
        Admission(accounts=weak).check("0.0.0.0")


def test_accounts_need_the_packages_that_st_login_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "configured", lambda: Admission(accounts=ACCOUNTS))
    monkeypatch.setattr(access.importlib.util, "find_spec", lambda name: None if name.startswith("httpx") else object())
    with pytest.raises(ValueError, match=r"Authlib and httpx.*convsweep\[oidc\]"):
        access.check_start("127.0.0.1")
    monkeypatch.setattr(access.importlib.util, "find_spec", lambda name: object())
    assert access.check_start("127.0.0.1").accounts == ACCOUNTS


# ---- which accounts may look ----


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "ann@example.org"},
        {"email": "ANN@Example.ORG", "email_verified": True},
        {"email": "bob@lab.example.com", "email_verified": "true"},
    ],
)
def test_an_allowed_address_or_domain_may_look(claims: Mapping[str, Any]) -> None:
    assert replace(ACCOUNTS, allowed=("Ann@example.org", "@LAB.example.com")).refusal(claims) is None


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({}, "does not say which"),
        ({"email": None}, "does not say which"),
        ({"email": "@lab.example.com"}, "not among those"),
        ({"email": "ann@example.org", "email_verified": False}, "not verified"),
        ({"email": "ann@example.org", "email_verified": "false"}, "not verified"),
        ({"email": "ann@example.org", "email_verified": None}, "not verified"),
        ({"email": "bob@example.org"}, "not among those"),
        ({"email": "bob@deep.lab.example.com"}, "not among those"),
        ({"email": "bob@evil-lab.example.com"}, "not among those"),
        ({"email": "bob@lab.example.com.evil.org"}, "not among those"),
        ({"email": "bob@lab.example.com@evil.org"}, "does not say which"),
        ({"email": "bob@evil.org@lab.example.com"}, "does not say which"),
        ({"email": "mi\u212ae@example.org"}, "not among those"),  # the Kelvin sign, which is k in lower case
    ],
)
def test_other_accounts_may_not(claims: Mapping[str, Any], why: str) -> None:
    refusal = replace(ACCOUNTS, allowed=("ann@example.org", "mike@example.org", "@lab.example.com")).refusal(claims)
    assert refusal is not None
    assert why in refusal


def test_without_a_list_the_provider_decides() -> None:
    assert ACCOUNTS.refusal({"email": "anybody@anywhere.org"}) is None


# ---- passwords that are tried ----


def test_five_wrong_passwords_in_a_minute_close_the_gate_for_the_rest_of_it() -> None:
    gate = PasswordGate()
    for second in range(5):
        assert gate.refusal("wrong", PASSWORD, 100.0 + second) == "That is not the password."
    assert gate.refusal("wrong", PASSWORD, 110.0) == "There were too many wrong passwords. Try again in 50 s."
    assert gate.refusal(PASSWORD, PASSWORD, 159.5) == "There were too many wrong passwords. Try again in 1 s."
    assert gate.refusal(PASSWORD, PASSWORD, 160.0) is None
    assert gate.refusal("wrong", PASSWORD, 160.1) == "That is not the password."
    assert gate.refusal(PASSWORD, PASSWORD, 160.2) == "There were too many wrong passwords. Try again in 1 s."


def test_slow_wrong_passwords_and_right_ones_do_not_close_it() -> None:
    gate = PasswordGate()
    for minute in range(20):
        assert gate.refusal("wrong", PASSWORD, 61.0 * minute) == "That is not the password."
        assert gate.refusal(PASSWORD, PASSWORD, 61.0 * minute) is None


@pytest.mark.parametrize("password", ["pässwörter, viele", "not utf-8: \udcff"])
def test_a_password_may_have_any_characters(password: str) -> None:
    assert PasswordGate().refusal(password, password, 0.0) is None
    assert PasswordGate().refusal(password[:-1], password, 0.0) is not None


# ---- the page ----


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Experiments:
    """An experiments folder with the sweep 'secretive'."""
    found = Experiments(tmp_path_factory.mktemp("experiments"))
    config = make_config({"name": "secretive", "data": "digits", "trials": 2, "epochs": 2})
    Studies(found, create=True).create(config, ["zero", "one"])
    return found


@pytest.fixture
def page(experiments: Experiments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    """The dashboard on these experiments, in a folder and for a user without secrets."""
    for name, value in settings.to_environment(experiments).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(admission.PASSWORD, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(access, "_gate", PasswordGate())
    yield AppTest.from_file(str(APP), default_timeout=30)
    st.cache_resource.clear()


@pytest.fixture
def locked(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv(admission.PASSWORD, PASSWORD)
    return run(page)


def run(page: AppTest) -> AppTest:
    page.run()
    assert not page.exception, page.exception
    return page


def enter(page: AppTest, password: str) -> AppTest:
    page.text_input[0].input(password)
    page.button[0].click()
    return run(page)


def shows_the_sweep(page: AppTest) -> bool:
    """Whether any element, or what the server keeps for the reader, names it."""
    return "secretive" in str(page)


def keeps(page: AppTest, text: str) -> bool:
    return text in str(page.session_state)


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def test_without_a_password_there_is_no_form(page: AppTest) -> None:
    run(page)
    assert shows_the_sweep(page)
    assert not page.text_input
    assert "Log out" not in labels(page)


def test_before_the_login_nothing_of_any_sweep_is_shown(locked: AppTest) -> None:
    assert [title.value for title in locked.title] == ["convsweep"]
    assert labels(locked) == ["Log in"]
    assert not locked.selectbox
    assert not shows_the_sweep(locked)


def test_a_wrong_password_shows_nothing_and_is_not_kept(locked: AppTest) -> None:
    enter(locked, "wrong password")
    assert locked.error[0].value == "That is not the password."
    assert locked.text_input[0].value == ""
    assert not shows_the_sweep(locked)
    assert not keeps(locked, "wrong password")


def test_the_right_password_shows_the_page_until_the_reader_logs_out(locked: AppTest) -> None:
    enter(locked, PASSWORD)
    assert shows_the_sweep(locked)
    assert not locked.text_input
    assert not keeps(locked, PASSWORD)
    assert shows_the_sweep(run(locked))
    next(button for button in locked.sidebar.button if button.label == "Log out").click()
    run(locked)
    assert labels(locked) == ["Log in"]
    assert not shows_the_sweep(locked)


def test_another_reader_has_to_log_in_too(locked: AppTest) -> None:
    enter(locked, PASSWORD)
    assert labels(run(AppTest.from_file(str(APP), default_timeout=30))) == ["Log in"]


def test_after_five_wrong_passwords_the_right_one_has_to_wait_for_every_reader(locked: AppTest) -> None:
    for number in range(5):
        enter(locked, f"wrong password {number}")
    other = run(AppTest.from_file(str(APP), default_timeout=30))
    enter(other, PASSWORD)
    assert "Try again in" in other.error[0].value
    assert not shows_the_sweep(other)


@pytest.mark.parametrize(
    ("url", "pages"),
    [
        ("http://localhost:8501/", {""}),
        ("http://localhost:8501/search?sweep=secretive", {"", "search"}),
        ("https://example.org/behind/a/proxy/search", {"", "search"}),
        ("http://localhost:8501/%3Cscript%3E", {""}),
    ],
)
def test_the_login_is_under_the_path_that_was_asked_for(
    page: AppTest, monkeypatch: pytest.MonkeyPatch, url: str, pages: set[str]
) -> None:
    monkeypatch.setenv(admission.PASSWORD, PASSWORD)
    paths: list[str] = []
    navigation = st.navigation

    def note(found: list[Any], **how: Any) -> Any:
        paths.extend(one.url_path for one in found)
        return navigation(found, **how)

    monkeypatch.setattr(st, "navigation", note)
    page.context["url"] = url
    assert labels(run(page)) == ["Log in"]
    assert set(paths) == pages


def test_with_accounts_there_is_a_button_for_each_provider(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(st, "login", asked.append)
    page.secrets = {"auth": AUTH | {"okta": AUTH}}
    page.user = {"is_logged_in": False}
    run(page)
    assert labels(page) == ["Log in with okta", "Log in with an account"]
    assert not shows_the_sweep(page)
    page.button[0].click()
    run(page)
    assert asked == ["okta"]
    assert not shows_the_sweep(page)


def test_an_account_that_is_allowed_sees_the_page_until_it_logs_out(page: AppTest) -> None:
    page.secrets = {"auth": AUTH, "convsweep": {"allowed": ["@example.org"]}}
    page.user = dict(ANN)
    run(page)
    assert shows_the_sweep(page)
    assert [text.value for text in page.sidebar.text] == ["ann@example.org"]
    next(button for button in page.sidebar.button if button.label == "Log out").click()
    run(page)
    assert page.user["is_logged_in"] is False
    assert labels(page) == ["Log in with an account"]
    assert not shows_the_sweep(page)


@pytest.mark.parametrize("claims", [{"email": "ann@elsewhere.org"}, {"email_verified": False}])
def test_an_account_that_is_not_allowed_sees_nothing_and_may_log_out(page: AppTest, claims: dict[str, Any]) -> None:
    page.secrets = {"auth": AUTH, "convsweep": {"allowed": ["@example.org"]}}
    page.user = ANN | claims
    run(page)
    assert "account" in page.error[0].value
    assert labels(page) == ["Log out"]
    assert not shows_the_sweep(page)


def test_an_account_does_not_count_where_only_a_password_is_configured(locked: AppTest) -> None:
    locked.user = dict(ANN)
    assert labels(run(locked)) == ["Log in"]


def test_either_a_password_or_an_account_will_do_where_both_are_configured(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(admission.PASSWORD, PASSWORD)
    page.secrets = {"auth": AUTH}
    page.user = {"is_logged_in": False}
    assert labels(run(page)) == ["Log in", "Log in with an account"]
    assert shows_the_sweep(enter(page, PASSWORD))


def test_secrets_that_cannot_be_read_do_not_open_the_dashboard(page: AppTest, tmp_path: Path) -> None:
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text("[auth\nclient_secret = 'hidden'")
    with pytest.raises(ValueError, match=r"secrets.toml"):
        access.configured()
    run(page)
    assert "not configured as it must be" in page.error[0].value
    assert not shows_the_sweep(page)


def test_a_login_that_was_taken_away_while_the_server_runs_does_not_open_the_dashboard(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(st, "get_option", lambda name: "0.0.0.0" if name == "server.address" else [])
    run(page)
    assert "not configured as it must be" in page.error[0].value
    assert not shows_the_sweep(page)
