"""`imgindex serve` as a process: it answers, stops gracefully, and is not stopped by hostile clients."""

import concurrent.futures
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving_process import COMMAND, Serving, serving

from imgindex.cli import main


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Serving]:
    """A service for all tests, which has nothing to log in any of them."""
    with serving(folder / "index", "--max_bytes", "200000") as found:
        yield found
        found.process.terminate()
        assert found.process.stderr is not None
        assert found.process.stderr.read() == ""


@pytest.fixture(scope="module")
def impatient(folder: Path) -> Iterator[Serving]:
    """A service that waits for nothing longer than half a second."""
    with serving(folder / "index", "--timeout", "0.5") as found:
        yield found


def connected(service: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=30)


def descriptors(service: Serving) -> int:
    """How many files the service has open."""
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


def is_answering(service: Serving, folder: Path) -> bool:
    image = {"image": (folder / "photos/a/02.png").read_bytes()}
    answer = httpx.post(service.url + "search", files=image, params={"k": 1}, timeout=30)
    return answer.status_code == 200 and answer.json()["results"][0]["neighbors"][0]["uri"] == "a/02.png"


def test_it_answers_and_a_signal_stops_it_with_success(folder: Path) -> None:
    with serving(folder / "index") as service:
        assert is_answering(service, folder)
        assert httpx.get(service.url).headers.get("server") is None
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        assert service.process.stderr is not None
        assert service.process.stderr.read() == ""


def test_a_request_that_has_begun_is_answered_before_it_stops(folder: Path) -> None:
    body = b'{"uri": "a/02.png"}'
    with serving(folder / "index") as service, connected(service) as client:
        head = b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body[:5])
        assert httpx.get(service.url + "healthz").status_code == 200  # by now the request has begun
        service.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):
            while True:  # until it takes no new connections
                httpx.get(service.url + "healthz")
        client.sendall(body[5:])
        assert client.recv(12) == b"HTTP/1.1 200"
        assert service.process.wait(60) == 0


@pytest.mark.long
def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    with serving(folder / "index") as service, connected(service) as client:
        client.sendall(b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n")
        assert httpx.get(service.url + "healthz").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):
            while True:
                httpx.get(service.url + "healthz")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 128 + signal.SIGTERM


def _all_of(client: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(1 << 16):
            received += more
    return received


class TestHostileClients:
    def test_broken_requests_are_bad_requests(self, service: Serving, folder: Path) -> None:
        requests = [
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: localhost\r\nbad header\r\n\r\n",
            b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
            b"POST /search HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: nonsense\r\n\r\nz\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
            b"GET /items/%zz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        ]
        for request in requests:
            with connected(service) as client:
                client.sendall(request)
                head, _, body = _all_of(client).partition(b"\r\n\r\n")
            assert re.match(rb"HTTP/1.1 4\d\d ", head), request[:80]
            assert b"content-type: application/json" in head
            assert f"HTTP/1.1 {json.loads(body)['error']['status']} ".encode() == head[:13]
        assert is_answering(service, folder)

    def test_a_request_whose_end_is_not_certain_ends_the_connection(self, service: Serving) -> None:
        # A proxy that goes by the one header lets the second request through as the body of the first.
        hidden = b"GET /items/a/00.png HTTP/1.1\r\nhost: localhost\r\n\r\n"
        with connected(service) as client:
            client.sendall(
                b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
                % (len(hidden) + 5)
                + hidden
            )
            answers = _all_of(client)
        assert answers.startswith(b"HTTP/1.1 400 ")
        assert answers.count(b"HTTP/1.1 ") == 1
        assert b"not both" in answers

    def test_a_body_that_breaks_after_the_answer_ends_the_connection(self, service: Serving) -> None:
        with connected(service) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
            client.sendall(b"no length\r\n")
            assert _all_of(client).count(b"HTTP/1.1 ") == 0

    def test_a_body_that_is_too_large_is_told_so(self, service: Serving, folder: Path) -> None:
        image = {"image": bytes(300_000)}
        answer = httpx.post(service.url + "search", files=image, timeout=30)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (413, "too_large")
        assert is_answering(service, folder)

    def test_slow_bodies_and_idle_connections_keep_nobody_waiting(
        self, service: Serving, folder: Path
    ) -> None:
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(connected(service)) for _ in range(100)]
            for client in slow[:50]:
                client.sendall(b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
            for client in slow[50:]:
                client.sendall(b"GET / HT")
            assert is_answering(service, folder)

    def test_a_body_that_does_not_come_is_given_up(self, impatient: Serving) -> None:
        with connected(impatient) as client:
            client.sendall(b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
            assert client.recv(12) == b"HTTP/1.1 408"

    def test_a_head_that_does_not_come_ends_the_connection(self, impatient: Serving) -> None:
        with connected(impatient) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: ")
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""

    @pytest.mark.long
    def test_thousands_of_connections_leave_nothing_behind(self, service: Serving, folder: Path) -> None:
        def disturb(number: int) -> None:
            with connected(service) as client:
                if number % 3 == 0:
                    client.sendall(b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
                elif number % 3 == 1:
                    client.sendall(b"\x00" * 100)

        assert is_answering(service, folder)
        before = descriptors(service)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            disturbing = [threads.submit(disturb, number) for number in range(10_000)]
            for _ in range(10):
                assert is_answering(service, folder)
            for each in disturbing:
                each.result()
        assert is_answering(service, folder)
        while descriptors(service) > before + 5:  # until it has noticed the last of them
            assert is_answering(service, folder)

    @pytest.mark.long
    def test_a_client_that_does_not_take_its_answers_is_dropped(self, impatient: Serving) -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", impatient.port))
            client.sendall(b"GET /static/page.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2000)
            waiting = select.poll()
            waiting.register(client, 0)  # for errors alone
            # By a reset, so that the system keeps nothing of what was not taken.
            assert [event & select.POLLERR for _, event in waiting.poll(60_000)] == [select.POLLERR]

    @pytest.mark.long
    def test_connections_beyond_the_limit_are_told_to_come_back(self, folder: Path) -> None:
        with serving(folder / "index", "--max_connections", "5") as service, contextlib.ExitStack() as stack:
            held = []
            while (answer := httpx.get(service.url + "healthz")).status_code == 200:
                held.append(stack.enter_context(connected(service)))
                held[-1].sendall(b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{")
            assert len(held) >= 5
            assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "busy")
            assert int(answer.headers["retry-after"]) >= 1
            for client in held:
                client.close()
            while httpx.get(service.url + "healthz").status_code == 503:
                pass  # until it has noticed
            assert is_answering(service, folder)

    @pytest.mark.long
    def test_connections_that_ask_for_nothing_make_room_for_others(self, folder: Path) -> None:
        with serving(folder / "index", "--max_connections", "5") as service, contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connected(service)).sendall(b"GET / HT")
            assert is_answering(service, folder)


class TestHosts:
    """The name of another site may lead to this machine: its pages may then read the answers."""

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200), ("LOCALHOST.:8000", 200), ("app.localhost:80", 200), ("127.0.0.1:1", 200),
            ("[::1]:8000", 200), ("192.168.1.7", 200), ("evil.example", 421), ("evil.example:8000", 421),
            ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421), ("", 421), ("a@localhost", 421),
        ],
    )  # fmt: skip
    def test_a_local_service_answers_to_names_of_this_machine_alone(
        self, host: str, status: int, service: Serving
    ) -> None:
        answer = httpx.get(service.url + "info", headers={"host": host})
        assert answer.status_code == status
        if status != 200:
            assert answer.json()["error"]["reason"] == "wrong_host"

    def test_names_can_be_allowed(self, folder: Path) -> None:
        with serving(folder / "index", "--allow_host", "Images.example") as service:
            for host, status in (("images.example", 200), ("localhost", 200), ("evil.example", 421)):
                assert httpx.get(service.url + "info", headers={"host": host}).status_code == status


class TestUsage:
    def test_a_port_that_is_taken(
        self, service: Serving, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["serve", str(folder / "index"), "--port", str(service.port)]) == 3
        assert "name another with --host and --port" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "code", "told"),
        [
            (["--port", "70000"], 2, "expected a number from 0 to 65535"),
            (["--host", "nowhere.invalid"], 2, "cannot be resolved"),
            (["--max_k", "0"], 2, "max_k is 0"),
            (["--timeout", "-1"], 2, "seconds is -1"),
        ],
    )
    def test_what_cannot_be_is_told_in_a_sentence(
        self, arguments: list[str], code: int, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["serve", str(folder / "index"), *arguments]) == code
        assert told in capsys.readouterr().err

    def test_an_output_without_an_index(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["serve", str(tmp_path), "--port", "0"]) == 3
        assert "holds no index" in capsys.readouterr().err

    def test_the_token_comes_from_the_environment(self, folder: Path) -> None:
        token = "a token of the tests"
        with serving(folder / "index", env={**os.environ, "IMGINDEX_TOKEN": token}) as service:
            assert httpx.get(service.url + "info").status_code == 401
            headers = {"authorization": f"Bearer {token}"}
            assert httpx.get(service.url + "info", headers=headers).status_code == 200

    @pytest.mark.long
    def test_a_service_for_everyone_is_warned_of(self, folder: Path) -> None:
        with serving(folder / "index", "--host", "0.0.0.0") as service:
            assert service.process.stderr is not None
            assert "IMGINDEX_TOKEN" in service.process.stderr.readline()

    def test_without_the_extra_it_says_what_to_install(self, folder: Path) -> None:
        code = (
            "import sys; sys.modules['uvicorn'] = None; from imgindex.cli import main; "
            f"sys.exit(main(['serve', {str(folder / 'index')!r}]))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 3
        assert done.stderr.endswith("run pip install 'imgindex[serve]'\n")
        assert COMMAND.exists()
