"""Cost of the decoding grammar with a real vocabulary: compile time, mask time per token, and steps/s of a real vLLM server.

    python -m bench.grammar masks      each family's grammar compared with a bare line, in thread CPU time (half a minute)
    python -m bench.grammar server     one server (one random layer under Qwen's 151,665 tokens), with and without a grammar (minutes)

The model of `server` is small, so the vocabulary dominates a step; in a large model's longer steps the share is smaller.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import xgrammar
from rich.console import Console
from rich.table import Table

from bench.real_vocabulary import CACHE, ROWS, real_tokenizer
from pipeline.serving.server import ManagedServer
from pipeline.teacher.client import TeacherClient
from pipeline.teacher.request_body import TeacherRequest
from pipeline.teacher.requests import reason_fields
from pipeline.traces.families import COMPOSED, FAMILIES, Family
from pipeline.traces.grammar import trace_grammar
from schemas.hosting import Endpoint, ServerConfig
from schemas.teacher import Transport
from schemas.teacher_config import TeacherConfig
from schemas.trace import FacetText, Trace

app = typer.Typer(add_completion=False, help=__doc__)
BARE = r"root ::= [^<>\r\n]+"
SAID = (
    "one beagle on green grass, seen from the side, with a red collar and a small tag; the head is lifted and both ears hang; a low "
    "fence stands behind it, and a row of trees in the haze; the light falls from the left, late in the afternoon"
)


class Cost(NamedTuple):
    compile_s: float
    mean_ms: float
    most_ms: float
    tokens: int


@app.command()
def masks(cache: Annotated[Path, typer.Option(help="Where the vocabulary is kept.")] = CACHE, rounds: int = 5) -> None:
    """Compile time and mask time per token for each family, open and bounded, and the ratio to a bare line."""
    tokenizer = real_tokenizer(cache)
    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=ROWS["7B"], stop_token_ids=[tokenizer.eos_token_id, tokenizer.pad_token_id]
    )
    bare = _cost(info, tokenizer, BARE, SAID, rounds)
    table = Table("grammar", "compile s", "mask ms/token", "longest", "ratio to a bare line", "tokens")
    _add(table, "bare line", bare, bare)
    for family in FAMILIES.values():
        text = _trace(family)
        bounded = trace_grammar(family, max_facet_chars=600, max_answer_chars=400)
        _add(table, family.name, _cost(info, tokenizer, trace_grammar(family), text, rounds), bare)
        _add(table, f"{family.name}, bounded", _cost(info, tokenizer, bounded, text, 1), bare)
    Console().print(table)


def _trace(family: Family) -> str:
    facets = tuple(FacetText(name=facet.name, label=facet.label, text=SAID) for facet in family.facets)
    return Trace(family=family.name, facets=facets, answer=SAID[:60].strip()).render()


def _cost(info: Any, tokenizer: Any, grammar: str, text: str, rounds: int) -> Cost:
    """Measures one grammar, without the compiler's cache. The fastest round counts, because the machine may be busy."""
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    began = time.process_time()
    compiled = compiler.compile_grammar(grammar)
    compile_s = time.process_time() - began
    tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    mask = xgrammar.allocate_token_bitmask(1, ROWS["7B"])
    best: list[float] = []
    for _ in range(rounds):
        matcher, took = xgrammar.GrammarMatcher(compiled), []
        for token in tokens:
            began = time.thread_time()
            matcher.fill_next_token_bitmask(mask)
            took.append(time.thread_time() - began)
            assert matcher.accept_token(token), tokenizer.decode([token])
        best = took if not best or sum(took) < sum(best) else best
    return Cost(compile_s, 1e3 * sum(best) / len(best), 1e3 * max(best), len(tokens))


def _add(table: Table, name: str, cost: Cost, bare: Cost) -> None:
    ratio = f"{cost.mean_ms / bare.mean_ms:.2f}"
    table.add_row(name, f"{cost.compile_s:.2f}", f"{cost.mean_ms:.4f}", f"{cost.most_ms:.4f}", ratio, str(cost.tokens))


@app.command()
def server(
    cache: Annotated[Path, typer.Option(help="Where the vocabulary is kept.")] = CACHE,
    sequences: Annotated[int, typer.Option(help="Answers decoded together.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 100,
    rounds: int = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Decoding steps/s of one server without a grammar, with the open one and with the bounded one, alternating."""
    rates: dict[str, list[float]] = {"without": [], "open": [], "bounded": []}
    with tempfile.TemporaryDirectory() as directory:
        _write_model(Path(directory), cache)
        config = ServerConfig.model_validate(
            {
                "model": directory,
                "device": device,
                "dtype": "float32" if device == "cpu" else "bfloat16",
                "max_model_len": 512,
                "max_pixels": None,
                "max_num_seqs": sequences,
                "startup_timeout_s": 900,
            }
        )
        with ManagedServer(config) as running:
            for turn in range(rounds + 1):  # the first turn compiles and is not counted
                for form, found in rates.items():
                    took = asyncio.run(_decode(running.endpoint, form, sequences, tokens, turn))
                    if turn:
                        found.append(tokens / took)
    table = Table("grammar", "steps/s", "ms/step", "ratio to none", "each turn")
    without = statistics.median(rates["without"])
    for form, found in rates.items():
        rate = statistics.median(found)
        turns = " ".join(f"{one:.1f}" for one in found)
        table.add_row(form, f"{rate:.1f}", f"{1e3 / rate:.0f}", f"{without / rate:.2f}", turns)
    Console().print(table)


async def _decode(endpoint: Endpoint, form: str, sequences: int, tokens: int, turn: int) -> float:
    """Returns the seconds to decode `sequences` answers at a time, all truncated at `tokens`: a random model does not stop by itself."""
    grammar = {"without": False, "open": True, "bounded": "bounded"}[form]
    teacher = TeacherConfig.model_validate({"hosting": "external", "endpoints": [endpoint], "grammar": grammar})
    transport = Transport(start_in_flight=sequences, max_in_flight=sequences, try_timeout_s=600)
    fields = reason_fields(COMPOSED, teacher) | {"temperature": 1.0, "max_tokens": tokens, "ignore_eos": True}
    asked = [
        TeacherRequest(str(n), [{"role": "user", "content": f"Describe {n}."}], fields | {"seed": 1000 * turn + n})
        for n in range(sequences)
    ]
    async with TeacherClient(transport.client((endpoint,))) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(client.ask(request) for request in asked))
    assert all(answer.finish_reason == "length" for answer in answers), [answer.detail for answer in answers]
    return time.perf_counter() - began


def _write_model(directory: Path, cache: Path) -> None:
    """Writes a Qwen2.5-VL of one layer with random weights and the real vocabulary."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = real_tokenizer(cache)
    marks = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
    text: dict[str, Any] = {
        "vocab_size": ROWS["7B"],
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text |= {"num_key_value_heads": 1, "max_position_embeddings": 2048, "rope_parameters": rope, "tie_word_embeddings": True}
    text |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128}
    vision |= {"fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **marks)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(directory)


if __name__ == "__main__":
    app()
