"""A server that shuts down: what it still answers, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import threading

import httpx
import openai
import pytest
from http_server import NAME, question, until
from raw_http import Raw, head

SHORT = {"model": NAME, "messages": question("what is it ?"), "max_tokens": 1}


def test_a_draining_server_takes_no_more(start):
    server = start()
    ready = httpx.get(f"{server.url}/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    server.state.admission.draining = True
    with pytest.raises(openai.InternalServerError) as raised:
        server.client().chat.completions.create(model=NAME, messages=question("what is it ?"))
    assert raised.value.status_code == 503 and raised.value.code == "draining"
    assert httpx.get(f"{server.url}/health/ready").status_code == 503
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_sigterm_refuses_unfinished_bodies_and_finishes_what_was_accepted(alone, bundle_path):
    process, url, log = alone
    body = SHORT | {"model": bundle_path.name, "max_tokens": 400, "stream": True, "temperature": 2, "seed": 3}
    with Raw(url) as unfinished, httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        unfinished.send(head(Content_Length=1000) + "{")
        lines = response.iter_lines()
        next(lines)
        os.kill(process.pid, signal.SIGTERM)
        status, content = unfinished.answer()
        assert status == 503 and json.loads(content)["error"]["code"] == "draining"
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    assert process.wait(60) == 0
    assert log.read_text().strip().endswith("drained") and "Traceback" not in log.read_text()


@pytest.mark.parametrize("serving", [["--drain", "0.01"]], ids=["hardly any time to drain"])
def test_answers_that_outlast_the_drain_end_with_an_error_and_no_traceback(alone, bundle_path):
    process, url, log = alone
    text = "a " * 600
    body = SHORT | {"model": bundle_path.name, "messages": question(text), "max_tokens": 900, "temperature": 2, "stream": True}
    ends = []

    def ask(seed):
        with client.stream("POST", f"{url}/v1/chat/completions", json=body | {"seed": seed}) as response:
            ends.append((response.status_code, [line for line in response.iter_lines() if line][-2:]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(24)]

    def begun() -> bool:  # some answers may be short enough to end before the last request is there
        (accepted,) = re.findall(r"^gridpool_accepted_requests (\S+)$", client.get(f"{url}/metrics").text, re.MULTILINE)
        return float(accepted) + len(ends) >= 24

    with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        for thread in threads:
            thread.start()
        until(begun)
        os.kill(process.pid, signal.SIGTERM)
        for thread in threads:
            thread.join()
    assert process.wait(60) == 0
    assert len(ends) == 24 and any("draining" in lines[0] for _, lines in ends)
    for status, lines in ends:  # 503 where nothing was sent yet
        assert (status, lines[-1]) == (200, "data: [DONE]") or (
            status == 503 and json.loads(lines[0])["error"]["code"] == "draining"
        )
    assert "Traceback" not in log.read_text()
