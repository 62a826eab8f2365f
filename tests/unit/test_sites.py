"""Settings and sites: what is accepted, and what a mistake is told."""

from pathlib import Path

import pytest

from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.sites import canonical_timezone, load_sites


def write_sites(text: str) -> None:
    Path("sites.toml").write_text(text, encoding="utf-8")


def test_nothing_configured_is_no_site() -> None:
    assert load_sites(load_settings()) == []


def test_one_site_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_URL", "https://my.example.org/")
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", "t-1")
    (site,) = load_sites(load_settings())
    assert (site.name, site.url, site.token.get_secret_value()) == ("default", "https://my.example.org", "t-1")


def test_a_pasted_token_leaves_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_URL", "https://my.example.org:8443/ns/?token=secret-1")
    (site,) = load_sites(load_settings())
    assert site.url == "https://my.example.org:8443/ns"
    assert site.token.get_secret_value() == "secret-1"
    assert "secret-1" not in repr(site)


def test_a_dotenv_file_is_read_and_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("NIGHTSCOUT_URL=https://file.example.org\nNIGHTSCOUT_SITE=fromfile\n", encoding="utf-8")
    monkeypatch.setenv("NIGHTSCOUT_URL", "https://environment.example.org")
    (site,) = load_sites(load_settings())
    assert (site.name, site.url) == ("fromfile", "https://environment.example.org")


def test_many_sites_take_their_secrets_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANNA_TOKEN", "t-anna")
    Path(".env").write_text("BEN_SECRET=s-ben\n", encoding="utf-8")
    write_sites(
        """
        [[sites]]
        name = "anna"
        url = "https://anna.example.org"
        token_env = "ANNA_TOKEN"
        timezone = "europe/berlin"
        [[sites]]
        name = "ben"
        url = "https://ben.example.org"
        api_secret_env = "BEN_SECRET"
        sensor_interval_minutes = 1
        """
    )
    anna, ben = load_sites(load_settings())
    assert (anna.token.get_secret_value(), anna.timezone) == ("t-anna", "Europe/Berlin")
    assert (ben.api_secret.get_secret_value(), ben.sensor_interval_minutes) == ("s-ben", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[sites]\n", "not valid TOML"),
        ("", "key sites"),
        ('[[sites]]\nname = "a"', "key sites.0.url"),
        ('[[sites]]\nname = "a"\nurl = "https://x"\ntoken = "t"', "key sites.0.token"),
        ('[[sites]]\nname = "a/b"\nurl = "https://x"', "site name 'a/b' is not usable"),
        ('[[sites]]\nname = "a"\nurl = "my.example.org"', "does not start with http"),
        ('[[sites]]\nname = "a"\nurl = "https://x"\ntimezone = "Mars/Base"', "'Mars/Base' is not a time zone"),
        ('[[sites]]\nname = "a"\nurl = "https://x"\ntoken_env = "NOT_SET_ANYWHERE"', "NOT_SET_ANYWHERE is not set"),
        ('[[sites]]\nname = "a"\nurl = "https://x"\n[[sites]]\nname = "a"\nurl = "https://y"', "names a site twice: a"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(text: str, message: str) -> None:
    write_sites(text)
    with pytest.raises(ConfigurationError, match=message):
        load_sites(load_settings())


def test_file_and_url_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_URL", "https://my.example.org")
    write_sites('[[sites]]\nname = "a"\nurl = "https://x"')
    with pytest.raises(ConfigurationError, match="Keep one"):
        load_sites(load_settings())


def test_a_malformed_setting_is_named_and_a_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_WINDOW_DAYS", "many")
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", "t-secret")
    with pytest.raises(ConfigurationError, match="NIGHTSCOUT_WINDOW_DAYS") as error:
        load_settings()
    assert "t-secret" not in str(error.value)


def test_profile_zones_in_capitals_are_known() -> None:
    assert canonical_timezone("ETC/GMT+5") == "Etc/GMT+5"
    assert canonical_timezone("nowhere") is None


def test_an_unsupported_lake_url_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_URL", "ftp://lake")
    with pytest.raises(ConfigurationError, match="ftp://"):
        _ = load_settings().lake_url
