"""The real vLLM server with the shipped models. Starting takes a minute, so most tests share the teacher's server, which the last of
them ends; the two at the end share the base model's."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from pipeline.serving.preflight import Example, Finding, preflight
from pipeline.serving.server_pool import ServerPool
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.dialect import image_part
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.request_images import ImageEncoder, ImageMode
from pipeline.teacher.requests import reason_request
from pipeline.teacher.trial_requests import Questions
from pipeline.traces.families import FAMILIES, VISUAL
from pipeline.traces.grammar import trace_grammar
from pipeline.traces.judgements import VERIFY, choice_fields, judgement_from_logprobs
from pipeline.traces.parser import parse_trace
from pocket.curriculum.example import Lesson
from pocket.training.train_loop import collate
from pocket.training.train_models import MODELS
from pocket.world.draw import SIDE, draw_scene
from pocket.world.scene import sample_scene
from prompts import PromptSet
from schemas.config import BuildConfig
from schemas.hosting import Endpoint, ServerConfig
from schemas.judgement import Judgement
from schemas.teacher import Outcome, Transport
from schemas.teacher_config import Sampling, TeacherConfig
from schemas.trace import Trace
from tests.pocket.test_shipped import assert_vllm_agrees_with_transformers
from tests.support.shared_ray import share_ray

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]
BY_PATH = TeacherConfig(hosting="external", endpoints=(Endpoint(url="http://a/v1", model="teacher"),), images="path")
TEXT = "What is left of the red circle?"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("M-BEIR")
    Image.effect_noise((SIDE, SIDE), 90).convert("RGB").save(root / "noise.png")
    rng = random.Random("real server")
    draw_scene(sample_scene(rng), rng).save(root / "scene.png")
    return root


@pytest.fixture(scope="module")
def config(images: Path) -> ServerConfig:
    return ServerConfig(
        model=str(MODELS / "teacher"),
        device="cpu",
        dtype="float32",
        max_model_len=512,
        max_pixels=None,
        max_num_seqs=16,
        media_root=images,
        startup_timeout_s=400,
    )


@pytest.fixture(scope="module")
def served(
    config: ServerConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], tuple[ServerPool, Endpoint]]]:
    """A pool of one server, and its endpoint: the one that all ask, or another where that was killed."""
    started: list[tuple[ServerPool, Endpoint]] = []

    def living() -> tuple[ServerPool, Endpoint]:
        if not started or started[-1][0].failures():
            share_ray()
            pool = ServerPool(config, logs=tmp_path_factory.mktemp("logs"))
            (endpoint,) = pool.start()
            started.append((pool, endpoint))
        return started[-1]

    yield living
    for pool, _ in started:
        pool.stop()


@pytest.fixture
def endpoint(served: Callable[[], tuple[ServerPool, Endpoint]]) -> Endpoint:
    return served()[1]


def client(endpoint: Endpoint) -> TeacherClient:
    return TeacherClient(Transport(try_timeout_s=120).client((endpoint,)))


async def asked_of(endpoint: Endpoint, world: Path, **teacher: object) -> list[Finding]:
    settings = {"hosting": "external", "endpoints": [endpoint.model_dump()], "prompts": "pocket", "grammar": "bounded"}
    bounds = {"max_facet_chars": 60, "max_answer_chars": 60}
    config = BuildConfig.model_validate({"mbeir": world, "teacher": settings | bounds | teacher})
    questions = Questions(config)
    examples = [Example(sample) for sample in questions.samples(("val", "test"))]
    assert len(examples) == 4
    return (await preflight(endpoint, "teacher", config, questions, examples)).findings


async def test_the_preflight_sends_the_requests_of_the_work(endpoint: Endpoint, small_world: Path) -> None:
    found = await asked_of(endpoint, small_world)
    assert [finding for finding in found if not finding.ok] == []
    assert [finding.ability for finding in found] == ["reachable", "model name", "assess", "reason", "verify"]
    unread = [finding.trouble for finding in await asked_of(endpoint, small_world, images="path")]  # outside its directory
    assert any(one is not None and one.stops and one.sets == {"teacher.images": "data_url"} for one in unread), unread
    wrong = await asked_of(endpoint.model_copy(update={"model": "another"}), small_world)
    assert [finding.trouble.detail for finding in wrong if finding.trouble] == ["it serves teacher, not another"]
    absent = await asked_of(endpoint.model_copy(update={"url": "http://127.0.0.1:9/v1"}), small_world)
    assert [finding.ability for finding in absent] == ["reachable"]


@pytest.mark.parametrize("mode", ImageMode)
async def test_every_family_has_its_form(endpoint: Endpoint, images: Path, mode: ImageMode) -> None:
    from pipeline.mbeir.image_store import ImageStore

    image = ImageEncoder(ImageStore(images), mode, max_pixels=SIDE * SIDE).encode("noise.png")
    assert image.url.startswith("file://" if mode is ImageMode.PATH else "data:image/png")
    async with client(endpoint) as asking:
        for family in FAMILIES.values():
            fields = {
                "max_tokens": 400,
                "temperature": 1.0,
                "structured_outputs": {"grammar": trace_grammar(family, max_facet_chars=30, max_answer_chars=20)},
            }
            messages = [{"role": "user", "content": [image_part(image, BY_PATH), {"type": "text", "text": TEXT}]}]
            answers = await asyncio.gather(
                *(asking.ask(TeacherRequest(str(n), messages, fields | {"seed": n})) for n in range(8))
            )
            for answer in answers:
                assert answer.outcome is Outcome.OK, answer.detail
                assert isinstance(parse_trace(answer.text, family), Trace), answer.text
                assert answer.prompt_tokens > 16
                assert answer.completion_tokens > 10


async def test_traces_of_unbounded_length_end_by_themselves(endpoint: Endpoint, images: Path) -> None:
    """With all the fields that a build sends."""
    from pipeline.mbeir.image_store import ImageStore

    teacher = TeacherConfig(hosting="external", endpoints=(endpoint,), sampling=Sampling(temperature=0.0, max_tokens=256))
    encoder = ImageEncoder(ImageStore(images), ImageMode.PATH, max_pixels=SIDE * SIDE)
    asked = {"instruction": "Find a caption of this image.", "query_text": "", "has_image": True, "complaint": ""}
    prompt = PromptSet.load("pocket").render("reason_visual", **asked)
    request = reason_request("x", prompt, {"query": encoder.encode("scene.png")}, VISUAL, teacher)
    async with client(endpoint) as asking:
        answer = await asking.ask(request)
    assert answer.outcome is Outcome.OK, answer.detail
    assert isinstance(parse_trace(answer.text, VISUAL), Trace), answer.text


@pytest.mark.parametrize("name", [None, "noise.png", "scene.png"])
async def test_log_probabilities_are_those_of_plain_transformers(endpoint: Endpoint, images: Path, name: str | None) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from pipeline.mbeir.image_store import ImageStore

    processor = AutoProcessor.from_pretrained(MODELS / "teacher")
    model = AutoModelForImageTextToText.from_pretrained(MODELS / "teacher", dtype=torch.float32).eval()
    parts: tuple[Image.Image | str, ...] = (TEXT,)
    if name is not None:
        with Image.open(images / name) as picture:
            parts = (picture.convert("RGB"), TEXT)
    inputs = collate([Lesson("x", parts, "")], processor, with_reply=False)
    with torch.inference_mode():
        expected = torch.log_softmax(model(**inputs).logits[0, -1], -1)
    encoder = ImageEncoder(ImageStore(images), ImageMode.PATH, max_pixels=SIDE * SIDE)
    content = [*([image_part(encoder.encode(name), BY_PATH)] if name is not None else []), {"type": "text", "text": TEXT}]
    async with client(endpoint) as asking:
        fields = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20, "temperature": 0.0}
        answer = await asking.ask(TeacherRequest("x", [{"role": "user", "content": content}], fields))
        held = await asking.ask(TeacherRequest("x", [{"role": "user", "content": content}], choice_fields(VERIFY)))
    assert isinstance(judgement_from_logprobs(held.first_token_logprobs, VERIFY), Judgement)
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    most_likely = expected.topk(20)
    tokens = {
        processor.tokenizer.decode([index]): value
        for index, value in zip(most_likely.indices.tolist(), most_likely.values.tolist(), strict=True)
    }
    common = tokens.keys() & answer.first_token_logprobs.keys()
    assert len(common) >= 10  # many of a random model's most likely tokens are bytes, which decode alike
    for token in common:
        assert answer.first_token_logprobs[token] == pytest.approx(tokens[token], abs=2e-3)


def test_vllm_and_transformers_agree_on_the_teacher(endpoint: Endpoint, images: Path) -> None:
    assert_vllm_agrees_with_transformers("teacher", endpoint, images)


async def test_a_refusal_of_the_server_is_permanent_and_explained(endpoint: Endpoint) -> None:
    async with client(endpoint) as asking:
        long = await asking.ask(TeacherRequest("long", [{"role": "user", "content": "red " * 2000}], {"max_tokens": 4}))
        outside = [{"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}]
        forbidden = await asking.ask(TeacherRequest("outside", [{"role": "user", "content": outside}], {"max_tokens": 4}))
        cut = await asking.ask(
            TeacherRequest("cut", [{"role": "user", "content": TEXT}], {"max_tokens": 2, "ignore_eos": True})
        )
    assert (long.outcome, "512" in long.detail) == (Outcome.PERMANENT_HTTP, True)
    assert forbidden.outcome is Outcome.PERMANENT_HTTP
    assert cut.outcome is Outcome.INVALID_FINISH


def test_a_pool_under_ray_serves_and_nothing_of_vllm_outlives_its_killed_actor(
    served: Callable[[], tuple[ServerPool, Endpoint]],
) -> None:
    """Last of all that ask the one server, which it ends. Other parents that are killed: tests/pipeline/serving/test_server.py."""
    import ray

    pool, endpoint = served()

    async def ask() -> bool:
        async with client(endpoint) as asking:
            answer = await asking.ask(TeacherRequest("x", [{"role": "user", "content": TEXT}], choice_fields(VERIFY)))
            return answer.ok

    assert asyncio.run(ask())
    assert pool.failures() == []
    supervisor = psutil.Process(ray.get(pool.actors[0].pid.remote()))
    processes = [supervisor, *supervisor.children(recursive=True)]
    assert len(processes) >= 3  # supervisor, API server, engine
    actor = psutil.Process(supervisor.ppid())
    actor.kill()  # kills the actor's process, as if a node were lost
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    (failure,) = pool.failures()
    assert "actor was lost" in failure


@pytest.fixture(scope="module")
def parent(
    config: ServerConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], int, Endpoint]]:
    """A process with a server of the base model: the process, its supervisor's id, its endpoint."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.serving.server import ManagedServer\n"
        "from schemas.hosting import ServerConfig\n"
        "server = ManagedServer(ServerConfig.model_validate_json(sys.argv[1]), log=Path(sys.argv[2]))\n"
        "server.start(); print(server.pid, server.endpoint.model_dump_json(), flush=True); sys.stdin.read()\n"
    )
    base = config.model_copy(update={"model": str(MODELS / "base")})
    process = subprocess.Popen(
        [sys.executable, "-c", code, base.model_dump_json(), str(tmp_path_factory.mktemp("parent") / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        supervisor, endpoint = process.stdout.readline().split(maxsplit=1)
        yield process, int(supervisor), Endpoint.model_validate_json(endpoint)
    finally:
        process.kill()
        process.communicate()


def test_vllm_and_transformers_agree_on_the_base(parent: tuple[subprocess.Popen[str], int, Endpoint], images: Path) -> None:
    assert_vllm_agrees_with_transformers("base", parent[2], images)


def test_nothing_of_vllm_outlives_a_killed_parent(parent: tuple[subprocess.Popen[str], int, Endpoint]) -> None:
    """Last of all, because it ends the server."""
    process, pid, _ = parent
    supervisor = psutil.Process(pid)
    processes = [supervisor, *supervisor.children(recursive=True)]
    assert len(processes) >= 3  # supervisor, API server, engine
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
