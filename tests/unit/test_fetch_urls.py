"""How http URLs are read, and data: URLs."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from preprocessor.config import FetchSettings
from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.service.fetch.data_urls import is_data_url, read_data_url
from preprocessor.service.fetch.urls import MAX_URL_LENGTH, WebRules

RULES = WebRules(FetchSettings(hosts="allowed.com, *.media.org, 93.184.216.34, [2606:4700::1]"))
ANY = WebRules(FetchSettings(hosts="*", ports="80,443,8080"))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("http://allowed.com", "http://allowed.com/"),
        ("https://allowed.com/", "https://allowed.com/"),
        ("HTTPS://Allowed.COM/A/b.MP4", "https://allowed.com/A/b.MP4"),
        ("http://allowed.com:80/x", "http://allowed.com/x"),
        ("http://allowed.com:443/x", "http://allowed.com:443/x"),
        ("https://a.media.org/clip%20one.mp4?sig=a%2Fb+c%3D&x=[1]&e=#t=10,20", None),
        ("https://a.b.media.org/a/../b//c;d=e", "https://a.b.media.org/a/../b//c;d=e"),
        ("https://allowed.com?x=1", "https://allowed.com/?x=1"),
        ("http://93.184.216.34/x", "http://93.184.216.34/x"),
        ("http://[2606:4700::1]/x", "http://[2606:4700::1]/x"),
    ],
)
def test_a_url_is_asked_for_as_it_was_written(text: str, asked: str | None) -> None:
    assert str(RULES.read(text, "clip")) == (asked or text.partition("#")[0])


@pytest.mark.parametrize(
    "text",
    [
        # somebody else's host behind an allowed one
        *("http://allowed.com@evil.com/", "http://allowed.com:80@evil.com/", "http://allowed.com%40evil.com/"),
        *(
            "http://user:secret@allowed.com/",
            "http://user@allowed.com/",
            "http://@allowed.com/",
            "http://:@allowed.com/",
        ),
        *(
            "http://evil.com\\@allowed.com/",
            "http://evil.com\\.allowed.com/",
            "http:\\\\allowed.com/",
            "http:/\\allowed.com",
        ),
        *(
            "http://allowed.com\t.evil.com/",
            "http://allowed.com\r\nHost: evil.com/",
            "http://allowed.com /",
            " http://allowed.com",
        ),
        *(
            "http://allowed.com\0.evil.com/",
            "http://allowed.com/\n",
            "http://allowed.com/a b",
            "http://allowed.com/\x7f",
        ),
        *("http://allowed.com;evil.com/", "http://allowed.com,evil.com/", "http://evil.com&allowed.com/"),
        # letters that look like others, or become others
        *(
            "http://аllowed.com/",
            "http://allowed。com/",
            "http://ⓐllowed.com/",
            "http://allowed.com/ü",
            "http://ſ.media.org/",
        ),
        # numbers that some resolvers take for addresses
        *(
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://0x7f.0.0.1/",
            "http://1.2.3/",
        ),
        *("http://127.0.0.01/", "http://127.0.0.256/", "http://allowed.com.1/", "http://a.0x/", "http://127.0.0.1./"),
        *(
            "http://[::1/",
            "http://[::1]evil.com/",
            "http://::1/",
            "http://[fe80::1%25eth0]/",
            "http://[v1.a]/",
            "http://[]/",
        ),
        *("http://[1.2.3.4]/", "http://[::g]/", "http://[allowed.com]/"),
        # hosts that are none
        *(
            "http:///allowed.com",
            "http://",
            "http:",
            "http:allowed.com",
            "http:/allowed.com",
            "//allowed.com/",
            "allowed.com",
        ),
        *(
            "http://allowed.com./",
            "http://.allowed.com/",
            "http://a..media.org/",
            f"http://{'a' * 64}.media.org/",
            "http://%61llowed.com",
        ),
        f"http://{'a.' * 130}media.org/",
        # ports that are none
        *("http://allowed.com:/", "http://allowed.com:80:80/", "http://allowed.com:+80/", "http://allowed.com:8_0/"),
        *("http://allowed.com:-1/", "http://allowed.com:http/", "http://allowed.com:８０/"),
        # other schemes
        *(
            "ftp://allowed.com/",
            "gopher://allowed.com/",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https+unix://allowed.com/",
        ),
        *(
            "http://allowed.com/%",
            "http://allowed.com/%zz",
            "http://allowed.com/<a>",
            'http://allowed.com/"',
            "http://allowed.com/{a}",
        ),
        "",
    ],
)
def test_a_url_that_could_be_read_in_two_ways_is_refused(text: str) -> None:
    for rules in (RULES, ANY):
        with pytest.raises(InvalidRequest) as refused:
            rules.read(text, "clip")
        assert refused.value.reason == "INVALID_URL"
        assert refused.value.message.startswith("clip: the URL cannot be used: ")
        assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        *("http://evil.com/", "http://allowed.com.evil.com/", "http://notallowed.com/", "http://sub.allowed.com/"),
        *(
            "http://media.org/",
            "http://evilmedia.org/",
            "http://media.org.evil.com/",
            "http://93.184.216.35/",
            "http://[::1]/",
        ),
        *(
            "http://evil.com/?allowed.com",
            "http://evil.com#@allowed.com/",
            "http://evil.com?@allowed.com/",
            "http://localhost/",
        ),
        "http://xn--llowed-1of.com/",
    ],
)
def test_a_host_that_is_not_allowed_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        RULES.read(text, "clip")
    assert refused.value.reason == "HOST_NOT_ALLOWED"


@pytest.mark.parametrize("port", [0, 22, 81, 6379, 8080, 65535, 65536, 99999])
def test_a_port_that_is_not_allowed_is_refused(port: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        RULES.read(f"http://allowed.com:{port}/", "clip")
    assert refused.value.reason == "PORT_NOT_ALLOWED"


def test_a_star_allows_any_name_and_the_ports_stay_few() -> None:
    assert str(ANY.read("http://anything.example:8080/x", "clip")) == "http://anything.example:8080/x"
    with pytest.raises(InvalidRequest, match="port 22"):
        ANY.read("http://anything.example:22/", "clip")


def test_without_hosts_none_is_allowed() -> None:
    with pytest.raises(InvalidRequest) as refused:
        WebRules(FetchSettings()).read("http://allowed.com/", "clip")
    assert refused.value.reason == "HOST_NOT_ALLOWED"


def test_a_url_may_be_long_and_no_longer() -> None:
    start = "http://allowed.com/?"
    assert len(str(RULES.read(start + "a" * (MAX_URL_LENGTH - len(start)), "clip"))) == MAX_URL_LENGTH
    with pytest.raises(InvalidRequest, match="8193 characters"):
        RULES.read(start + "a" * (MAX_URL_LENGTH - len(start) + 1), "clip")


# -- data: -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"a", b"ab", b"abc", bytes(range(256))])
@pytest.mark.parametrize(
    "head",
    [
        *("data:;base64,", "data:image/png;base64,", "DATA:text/html;charset=utf-8;Base64,", "data:;a=b;base64,"),
        *("data:base;base64;charset=utf-8,", "data:image/png;name=a%20b.png;base64,", "data:image/png ; base64 ,"),
        *('data:image/png;name="a, b.png";base64,', "data:im age/png;base64,", " data:image/svg+xml;base64,"),
    ],
)
def test_a_data_url_is_its_bytes_whatever_type_it_states(head: str, data: bytes) -> None:
    url = head + base64.b64encode(data).decode()
    assert is_data_url(url)
    assert read_data_url(url, "photo", 1000) == data


IN_64 = {
    "percent-encoded": lambda text: "".join(f"%{ord(letter):02X}" for letter in text),
    "percent-encoded where a form does": lambda text: text.replace("+", "%2b").replace("/", "%2F").replace("=", "%3D"),
    "in lines": lambda text: "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\n",
    "in lines that are percent-encoded": lambda text: "%0A".join(text[at : at + 64] for at in range(0, len(text), 64)),
    "with spaces": lambda text: f" {text[:5]} \t{text[5:]} ",
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "without padding": lambda text: text.rstrip("="),
    "URL-safe without padding": lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
    "before a fragment": lambda text: text + "#t=10",
}


@pytest.mark.parametrize("size_bytes", [254, 255, 256])
@pytest.mark.parametrize("write", IN_64.values(), ids=IN_64)
def test_base64_is_read_as_clients_write_it(write: Callable[[str], str], size_bytes: int) -> None:
    data = bytes(range(255, 255 - size_bytes, -1)) if size_bytes < 256 else bytes(range(256))
    assert read_data_url("data:image/png;base64," + write(base64.b64encode(data).decode()), "photo", 1000) == data


@pytest.mark.parametrize(
    ("url", "data"),
    [
        ("data:,hello", b"hello"),
        ("data:text/plain,a%20b%2Cc,d", b"a b,c,d"),
        ("data:image/png,%89PNG%0D%0A%1a%0A", b"\x89PNG\r\n\x1a\n"),
        ("data:,ü", "ü".encode()),
        ('data:x="y,z', b"z"),
    ],
)
def test_without_base64_a_data_url_is_percent_encoded_bytes(url: str, data: bytes) -> None:
    assert read_data_url(url, "photo", 1000) == data


@pytest.mark.parametrize(
    "url",
    [
        *("data:", "data:image/png", "data:image/png;base64", "data:;base64,@@@@", "data:;base64,YWJj!"),
        *("data:;base64,YQ===", "data:;base64,YWJj=", "data:;base64,YWI==", "data:;base64,Y", "data:;base64,YWJjZ==="),
        *("data:;base64,YQ==YQ==", "data:;base64,=YQ=", "data:;base64,====", "data:;base64,Y=Q="),
        *("data:;base64,ＹWJj", "data:;base64,YWJ\0", "data:;base64,YWJ%00", "data:;base64,%E2%82%ACYWI"),
        *("data:;base64,YWJj%", "data:;base64,YWJj%4", "data:;base64,%zzWJj", "data:,100%", "data:,%+1a", "data:,%%41"),
        *("data:;base64,YR==", "data:;base64,YWJjYWJ=", "data:;base64,YR"),  # bits behind the last byte
    ],
)
def test_a_data_url_that_is_garbage_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_data_url(url, "photo", 1000)
    assert refused.value.reason == "INVALID_DATA_URL"


@pytest.mark.parametrize("head", ["data:,", "data:;base64,"])
def test_a_data_url_larger_than_accepted_is_refused_however_it_is_encoded(head: str) -> None:
    with pytest.raises(LimitExceeded) as refused:
        read_data_url(head + "%41" * 2000, "photo", 1000)
    assert refused.value.reason == "INLINE_TOO_LARGE"


@pytest.mark.parametrize("size_bytes", [1001, 1002, 1003, 1004, 10_000])
def test_a_data_url_larger_than_accepted_is_refused(size_bytes: int) -> None:
    assert len(read_data_url("data:;base64," + base64.b64encode(bytes(1000)).decode(), "photo", 1000)) == 1000
    with pytest.raises(LimitExceeded) as refused:
        read_data_url("data:;base64," + base64.b64encode(bytes(size_bytes)).decode(), "photo", 1000)
    assert refused.value.reason == "INLINE_TOO_LARGE"
