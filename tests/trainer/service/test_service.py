"""The real service in its own process, driven by OpenAI's client: answers, limits; nothing foreign in the log; its end in mid-load."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from schemas.errors import InputError
from tests.support.cli import mbeir_cot
from tests.support.service import KEY, Service, started
from tests.test_docs import ROOT, snippets
from trainer import Index, TraceEmbedder
from trainer.service.remote import RemoteEmbedder, ServiceError

pytestmark = pytest.mark.slow
TEXTS = ["a town in the north", "a red cube"]


@pytest.fixture(scope="module")
def service(finished: Path, small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ("--max-waiting", "64", "--max-pixels", "250000", "--drain-s", "60")
    options += ("--media-root", str(small_world / "mbeir_images"))
    with started(finished, tmp_path_factory.mktemp("service"), *options) as one:
        yield one


@pytest.fixture(scope="module")
def embedder(finished: Path) -> TraceEmbedder:
    return TraceEmbedder.load(finished, device="cpu")


@pytest.fixture(scope="module")
def image(small_world: Path) -> Path:
    return next((small_world / "mbeir_images").rglob("*.jpg"))


def shown(content: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"}}


def test_openais_client_gets_the_vectors_traces_and_routes_of_the_embedder(
    service: Service, embedder: TraceEmbedder, image: Path
) -> None:
    client = service.client()
    for route, own in (("learned", "learned"), ("never", "always-direct"), ("always", "always-reason")):
        wanted = embedder.embed_queries(TEXTS, instruction="Find the town.", route=own)  # type: ignore[arg-type]
        said = client.embeddings.create(
            model="trace", input=TEXTS, extra_body={"instruction": "Find the town.", "route": route}
        )
        for row, one in zip(said.data, wanted, strict=True):
            more: Any = row.model_extra
            np.testing.assert_allclose(row.embedding, one.vector.numpy(), atol=1e-5)
            assert (more["route"] == "reasoning", more["trace"] or "", more["trace_tokens"]) == (
                one.reasoned, one.trace, one.tokens,
            )  # fmt: skip
            assert more["p_reasoning"] == pytest.approx(1 - one.p_direct, abs=1e-4)
            assert (more["trace_confidence"] is None) == (one.confidence is None)
            assert more["trace_confidence"] == pytest.approx(one.confidence, abs=1e-3)
            assert more["fell_back"] == one.fell_back
        assert said.usage.prompt_tokens == sum(one.prompt_tokens for one in wanted) > 20
        assert said.usage.total_tokens - said.usage.prompt_tokens == sum(one.tokens for one in wanted)
    assert [model.id for model in client.models.list()] == ["trace"]


def test_the_documented_python_runs(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = snippets(ROOT / "docs" / "serving.md")
    exec(code.replace("http://127.0.0.1:8100/v1", service.url).replace('"none"', repr(KEY)), {})
    assert re.match(r"\[-?0\.\d+, .*\] (reasoning|bypass) [\de.-]+ ", capsys.readouterr().out)


def test_content_parts_give_pictures_by_value_or_by_a_path_below_the_roots(
    service: Service, embedder: TraceEmbedder, image: Path
) -> None:
    client, text = service.client(), {"type": "text", "text": "make it black"}
    (query,) = embedder.embed_queries([("make it black", image)], instruction="Show the change.", route="always-direct")
    candidates = embedder.embed_candidates([("make it black", image), image])
    by_path = {"type": "image_url", "image_url": {"url": f"file://{image}"}}
    system = {"role": "system", "content": "Show the change."}
    for part in (shown(image.read_bytes()), by_path):
        said = client.post(
            "/embeddings",
            cast_to=object,
            body={"messages": [system, {"role": "user", "content": [part, text]}], "route": "never"},
        )
        np.testing.assert_allclose(said["data"][0]["embedding"], query.vector.numpy(), atol=1e-5)  # type: ignore[index]
        messages = [[{"role": "user", "content": [text, part]}], [{"role": "user", "content": [part]}]]
        said = client.post("/embeddings", cast_to=object, body={"messages": messages, "input_type": "candidate"})
        vectors = [row["embedding"] for row in said["data"]]  # type: ignore[index]
        np.testing.assert_allclose(vectors, candidates, atol=1e-5)
        assert "trace" not in said["data"][0]  # type: ignore[index]
    several = [part, text, shown(image.read_bytes())]
    (one,) = embedder.embed_queries([[image, "make it black", image]], route="always-direct")
    said = client.post(
        "/embeddings", cast_to=object, body={"messages": [{"role": "user", "content": several}], "route": "never"}
    )
    np.testing.assert_allclose(said["data"][0]["embedding"], one.vector.numpy(), atol=1e-5)  # type: ignore[index]


def test_errors_have_openais_form_and_say_what_to_do(service: Service) -> None:
    client = service.client()
    with pytest.raises(openai.NotFoundError, match="name trace"):
        client.embeddings.create(model="gpt-4", input="a")
    with pytest.raises(openai.BadRequestError, match="tokens are not taken"):
        client.embeddings.create(model="trace", input=[1, 2])
    with pytest.raises(openai.BadRequestError, match="512 dimensions of 256"):
        client.embeddings.create(model="trace", input="a", dimensions=512)
    with pytest.raises(openai.AuthenticationError, match="bearer token"):
        openai.OpenAI(base_url=service.url, api_key="sk-wrong", max_retries=0).embeddings.create(model="trace", input="a")
    assert len(client.embeddings.create(model="trace", input="a", dimensions=64).data[0].embedding) == 64
    large = io.BytesIO()
    Image.new("RGB", (600, 500)).save(large, "PNG")
    for part, said in (
        (shown(large.getvalue()), "more than the cap"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "outside the directories"),
        ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}, "not one of --remote-host"),
    ):
        body = {"messages": [{"role": "user", "content": [part]}]}
        with pytest.raises(openai.BadRequestError, match=said):
            client.post("/embeddings", cast_to=object, body=body)
    plain = httpx.post(f"{service.url}/embeddings", content=b"{no json", headers={"Authorization": f"Bearer {KEY}"})
    assert (plain.status_code, plain.json()["error"]["type"]) == (400, "invalid_request_error")
    assert httpx.get(f"{service.root}/health").json() == {"status": "ok"}


def test_more_than_may_wait_is_refused_with_retry_after(service: Service) -> None:
    client = service.client()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(
            client.embeddings.create, model="trace", input=["a red cube"] * 60, extra_body={"route": "always"}
        )
        service.wait_for("mbeir_cot_waiting", 60)
        with pytest.raises(openai.RateLimitError) as refused:
            client.embeddings.create(model="trace", input=["a red cube"] * 5)
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        assert len(first.result().data) == 60
    patient = openai.OpenAI(base_url=service.url, api_key=KEY, max_retries=5)
    assert patient.embeddings.create(model="trace", input="a").data
    said = service.metrics()
    assert said['mbeir_cot_refused_total{reason="inputs"}'] >= 1
    assert said["mbeir_cot_waiting"] == said["mbeir_cot_waiting_bytes"] == 0
    assert said["mbeir_cot_batch_size_count"] > 0


def test_search_takes_a_url(
    service: Service, finished: Path, tiny_world: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_KEY", KEY)
    made = mbeir_cot(
        "index",
        finished,
        "--out",
        tmp_path / "index",
        "--split",
        "val",
        "--pool",
        "webqa_task1",
        "--set",
        f"data.mbeir={tiny_world}",
    )
    assert made.returncode == 0, made.stderr
    remote = RemoteEmbedder(service.url, api_key_env="SERVICE_KEY")
    index = Index.open(tmp_path / "index")
    queries = ["a town in the north", ("make it black", image), Image.new("RGB", (64, 64))]
    mine, theirs = (index.find(queries, one, k=3) for one in (index.embedder(device="cpu"), remote))  # type: ignore[arg-type]
    for own, far in zip(mine, theirs, strict=True):
        assert [hit.candidate.did for hit in own.hits] == [hit.candidate.did for hit in far.hits]
        assert (own.query.trace, own.query.reasoned) == (far.query.trace, far.query.reasoned)
    np.testing.assert_allclose(
        remote.embed_candidates(["a", image]), index.embedder().embed_candidates(["a", image]), atol=1e-5
    )
    asked = ["search", tmp_path / "index", "a town in the north", "-k", "2", "--url", service.url]
    found = mbeir_cot(*asked, "--api-key-env", "SERVICE_KEY")
    assert found.returncode == 0, found.stderr
    assert mine[0].hits[0].candidate.did in found.stdout
    refused = mbeir_cot(*asked)
    assert refused.returncode == 2
    assert "HTTP 401" in refused.stderr
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        RemoteEmbedder(service.url, api_key_env="NO_SUCH_KEY")
    with pytest.raises(ServiceError, match="check the URL"):
        RemoteEmbedder("http://127.0.0.1:9/v1")


def test_the_log_has_no_texts_urls_or_keys(service: Service) -> None:
    log = service.log.read_text()
    assert "inputs, " in log
    for secret in (KEY, "sk-wrong", "town", "red cube", "passwd", "base64", "169.254"):
        assert secret not in log


def test_an_embedder_that_cannot_be_loaded_and_a_used_port_are_told(tmp_path: Path, finished: Path, service: Service) -> None:
    missing = mbeir_cot("serve-embeddings", tmp_path / "none")
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
    untrained = mbeir_cot("serve-embeddings", finished, "--variant", "direct", "--port", "0")
    assert untrained.returncode == 2
    assert "direct" in untrained.stderr
    port = service.root.rsplit(":", 1)[1]
    used = mbeir_cot("serve-embeddings", finished, "--port", port)
    assert used.returncode == 2
    assert "already in use" in used.stderr
    unset = mbeir_cot("serve-embeddings", finished, "--port", "0", "--api-key-env", "NO_SUCH_KEY")
    assert "NO_SUCH_KEY is not set" in unset.stderr


class Load:
    """Clients that ask one query after the other until they are stopped. Each request ends in an answer or an error."""

    def __init__(self, service: Service, clients: int) -> None:
        self.answered = self.broken = 0
        self.refusals: list[tuple[int, int]] = []
        self.stopped = False
        self._service = service
        self._threads = ThreadPoolExecutor(clients)
        self._running = [self._threads.submit(self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        client = self._service.client()
        while not self.stopped:
            try:
                (row,) = client.embeddings.create(
                    model="trace", input="a town in the north", extra_body={"route": "always"}
                ).data
                assert len(row.embedding) == 256
                self.answered += 1
            except openai.APIStatusError as error:
                self.refusals.append((error.status_code, int(error.response.headers["retry-after"])))
                time.sleep(0.1)
            except openai.APIConnectionError:
                self.broken += 1
                if self._service.process.poll() is not None:
                    return
                time.sleep(0.1)

    def end(self) -> None:
        self.stopped = True
        for one in self._running:
            one.result(timeout=120)


def test_no_accepted_request_is_lost_when_the_engine_is_killed_or_the_service_is_stopped(service: Service) -> None:
    """Last of all, because it ends the service. What was accepted gets an answer or an error."""
    reasoned, restarted = 'mbeir_cot_embedded_total{kind="reasoning"}', "mbeir_cot_engine_restarts_total"
    before, logged = service.metrics(), len(service.log.read_text())
    load = Load(service, 8)
    service.wait_for(reasoned, before.get(reasoned, 0) + 20)
    os.kill(service.engine(), signal.SIGKILL)
    service.wait_for(restarted, before.get(restarted, 0) + 1)
    service.wait_for("mbeir_cot_engine_up", 1)
    service.wait_for(reasoned, before.get(reasoned, 0) + load.answered + 20)
    assert {status for status, _ in load.refusals} == {503}, "what was accepted is answered, with an error"
    assert min(seconds for _, seconds in load.refusals) >= 1
    assert load.broken == 0, "no connection breaks"

    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=120) == 0
    load.end()
    log = service.log.read_text()[logged:]
    _, after = re.split(r"stopping: (?=\d)", log)
    assert after.count(" 1 inputs") >= int(after.split()[0]), "what was accepted is finished"
    assert log.count(" 1 inputs") == load.answered, "and each answer reached its client"
    assert "stopped" in log.splitlines()[-1]
    with pytest.raises(ProcessLookupError):
        os.kill(service.engine(), 0)
