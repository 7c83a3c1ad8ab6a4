"""The service with a real vLLM engine: the vectors, routes and traces of the embedder in transformers; no request is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from schemas.training import RouteChoice
from tests.support.service import KEY, Service, started
from trainer import TraceEmbedder
from trainer.embedding.query_embedding import QueryEmbedding
from trainer.service.remote import RemoteEmbedder

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
ROUTES: tuple[RouteChoice, ...] = ("learned", "always-direct", "always-reason")


def check_equal(ours: QueryEmbedding, theirs: QueryEmbedding) -> None:
    np.testing.assert_allclose(ours.vector, theirs.vector, atol=1e-4)
    assert (ours.reasoned, ours.trace, ours.tokens, ours.ended, ours.fell_back) == (
        theirs.reasoned, theirs.trace, theirs.tokens, theirs.ended, theirs.fell_back,
    )  # fmt: skip
    assert ours.p_direct == pytest.approx(theirs.p_direct, abs=1e-4)
    assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)


def check_answers(service: Service, finished: Path, image: Path, fallback: float) -> None:
    """From many clients at once, so that queries of all routes and candidates are in the engine together."""
    embedder = TraceEmbedder.load(finished, device="cpu", overrides=[f"adaptive.fallback={fallback}"])
    queries: list[Any] = ["a town in the north", ("make it black", image), image, "a red cube"]
    remote = RemoteEmbedder(service.url, api_key_env="SERVICE_KEY")
    with ThreadPoolExecutor() as threads:
        asked = {route: threads.submit(remote.embed_queries, queries, route=route) for route in ROUTES}
        candidates = threads.submit(remote.embed_candidates, queries)
        single = threads.submit(remote.embed_queries, queries[:1], route="always-direct")
        said = {route: future.result() for route, future in asked.items()}
    for route in ROUTES:
        for ours, theirs in zip(said[route], embedder.embed_queries(queries, route=route), strict=True):
            check_equal(ours, theirs)
    (first,) = single.result()
    check_equal(first, said["always-direct"][0])
    assert all(one.reasoned for one in said["always-reason"])
    assert {one.fell_back for one in said["always-reason"]} == {True, False}
    np.testing.assert_allclose(candidates.result(), embedder.embed_candidates(queries), atol=1e-4)


def check_refusal(service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match=r"vLLM refuses a query or candidate of \d+,\d+ tokens"):
        service.client().embeddings.create(model="trace", input=["a red cube", "a red cube " * 2_900])


async def leave(service: Service) -> list[BaseException | Any]:
    """Four requests whose client goes while the engine has its inputs."""
    async with openai.AsyncOpenAI(base_url=service.url, api_key=KEY, max_retries=0) as client:
        asked = [
            asyncio.ensure_future(
                client.embeddings.create(model="trace", input=["a red cube"] * 64, extra_body={"route": "always"})
            )
            for _ in range(4)
        ]
        await asyncio.to_thread(service.wait_for, "mbeir_cot_waiting", 200)
        for one in asked:
            one.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)


def check_departure(service: Service) -> None:
    """All that the engine has is dropped, and the next client is answered."""
    ended = asyncio.run(leave(service))
    assert {type(one) for one in ended} == {asyncio.CancelledError}
    (answer,) = service.client().embeddings.create(model="trace", input=["a red cube"]).data
    assert len(answer.embedding) > 0
    assert service.metrics()["mbeir_cot_waiting"] == 0


def check_death(service: Service) -> None:
    def ask() -> int:
        try:
            service.client().embeddings.create(model="trace", input=["a red cube"] * 64, extra_body={"route": "always"})
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(ask) for _ in range(4)]
        service.wait_for("mbeir_cot_waiting", 200)
        time.sleep(0.1)
        os.kill(service.engine(), signal.SIGKILL)
        assert {one.result() for one in asked} == {503}


def test_vllm_serves_what_transformers_embeds_and_its_death_is_told(
    finished: Path, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = next((small_world / "mbeir_images").rglob("*.jpg"))
    embedder = TraceEmbedder.load(finished, device="cpu")
    queries: list[Any] = ["a town in the north", ("make it black", image), image, "a red cube"]
    confidences = sorted(one.confidence or 0.0 for one in embedder.embed_queries(queries, route="always-reason"))
    fallback = (confidences[1] + confidences[2]) / 2
    settings = ("--set", "adaptive.engine=vllm", "--set", f"adaptive.fallback={fallback}")
    monkeypatch.setenv("SERVICE_KEY", KEY)
    monkeypatch.setenv("MBEIR_COT_CACHE", str(tmp_path / "cache"))
    with started(finished, tmp_path, *settings) as service:
        check_answers(service, finished, image, fallback)
        check_refusal(service)
        check_departure(service)
        check_death(service)
        until = time.monotonic() + 300
        while "running again" not in service.log.read_text():  # an engine that is stopped while it loads is killed
            assert time.monotonic() < until
            time.sleep(0.1)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=120) == 0
        assert "is killed" not in service.log.read_text(), "the engine ends by itself"
