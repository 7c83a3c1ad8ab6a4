from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbeir_cot.commands.score import score as score_command
from pipeline.mbeir.layout import Layout
from schemas.errors import InputError
from schemas.mbeir import DATASET_TASKS, DatasetTask, hash_did, hash_qid, unhash_did, unhash_qid
from tests.support.cli import mbeir_cot
from trainer.data.exclusions import Exclusion, save_exclusions
from trainer.embedding import files as files_module
from trainer.embedding.files import EmbeddingFiles, exclusions_path, ids_path, load_embeddings
from trainer.embedding.vectors import read_blocks
from trainer.evaluation.hit_rates import Score, metric_ks
from trainer.evaluation.uniir_files import format_run, format_table, score_directory
from trainer.retrieval.topk import TopK

CIRR, COCO, FIQ = DatasetTask("cirr", 7), DatasetTask("mscoco", 3), DatasetTask("fashioniq", 7)


def save(path: Path, vectors: np.ndarray, ids: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors.astype(np.float16))
    np.save(ids_path(path), np.array(ids, np.int64))


def world(directory: Path, rng: np.random.Generator) -> tuple[Path, Path, dict[str, dict[str, list[str]]]]:
    """Embeddings of three tasks with many ties, and qrels: (uniir dir, M-BEIR dir, task -> qid -> relevant dids)."""
    uniir, mbeir = directory / "uniir", directory / "M-BEIR"
    files = EmbeddingFiles(uniir, "exp")
    relevant: dict[str, dict[str, list[str]]] = {}
    for task, number in ((COCO, 9), (FIQ, 7), (CIRR, 8)):
        pool = [f"{number}:{n}" for n in rng.permutation(np.arange(1, 61))]
        queries = [f"{number}:{n}" for n in rng.permutation(np.arange(1, 12))]
        save(files.candidates(task, "test"), rng.integers(-2, 3, (60, 3)), [hash_did(did) for did in pool])
        save(files.queries(task, "test"), rng.integers(-2, 3, (11, 3)), [hash_qid(qid) for qid in queries])
        relevant[task.name] = {
            qid: [str(did) for did in rng.choice(pool, rng.integers(1, 4), replace=False)] + ["6:123"] for qid in queries
        }
        qrels = mbeir / "qrels" / "test" / f"mbeir_{task.name}_test_qrels.txt"
        qrels.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{qid} 0 {did} 1 {task.task_id}" for qid, dids in relevant[task.name].items() for did in dids]
        qrels.write_text("\n".join(lines) + "\n")
    query_file = mbeir / "query" / "test" / "mbeir_cirr_task7_test.jsonl"
    query_file.parent.mkdir(parents=True)
    query_file.write_text("{}\n")
    return uniir, mbeir, relevant


def simple_value(
    files: EmbeddingFiles, task: DatasetTask, pools: list[DatasetTask], relevant: dict[str, list[str]], k: int, most: int
) -> float:
    """UniIR's number, implemented independently from its description: with loops, and faiss for the search."""
    import faiss

    vectors = np.concatenate([np.load(files.candidates(t, "test")) for t in pools]).astype(np.float32)
    ids = np.concatenate([np.load(ids_path(files.candidates(t, "test"))) for t in pools])
    queries = np.load(files.queries(task, "test")).astype(np.float32)
    qids = np.load(ids_path(files.queries(task, "test")))
    faiss.normalize_L2(vectors)
    faiss.normalize_L2(queries)
    index = faiss.index_factory(vectors.shape[1], "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(vectors, ids)
    _, found = index.search(queries, most)
    hits = 0.0
    for row, qid in zip(found, qids, strict=True):
        wanted = relevant[f"{qid // 500_000}:{qid % 500_000}"]
        names = [f"{i // 10_000_000}:{i % 10_000_000}" for i in row[:k]]
        hits += any(name in wanted for name in names)
    return round(hits / len(qids), 4)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_scores_equal_uniirs_on_pools_with_many_ties(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    uniir, mbeir, relevant = world(tmp_path_factory.mktemp("w"), np.random.default_rng(seed))
    files = EmbeddingFiles(uniir, "exp")
    in_order = [task for task in DATASET_TASKS if task in (CIRR, COCO, FIQ)]
    found = [score for scores, _ in score_directory(files, Layout(mbeir)) for score in scores]
    assert len(found) == 3 * 2 * 3
    for score in found:
        pools = in_order if score.pool == "union" else [score.task]
        most = max(metric_ks(score.task))
        assert score.value == simple_value(files, score.task, pools, relevant[score.task.name], score.k, most), score


@pytest.mark.parametrize("what", ["queries", "candidates"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused_and_named(tmp_path: Path, what: str, value: float) -> None:
    uniir, mbeir, _ = world(tmp_path, np.random.default_rng(5))
    files = EmbeddingFiles(uniir, "exp")
    path = files.queries(FIQ, "test") if what == "queries" else files.candidates(FIQ, "test")
    vectors, ids = np.load(path), np.load(ids_path(path))
    vectors[[1, 4], 2] = value
    np.save(path, vectors)
    name = unhash_qid if what == "queries" else unhash_did
    with pytest.raises(InputError) as caught:
        list(score_directory(files, Layout(mbeir)))
    assert f"{path}: 2 of {len(ids)} vectors are not finite" in caught.value.problem
    assert f": {name(int(ids[1]))}, {name(int(ids[4]))}" in caught.value.problem
    assert not list(files.runs.glob("*fashioniq*"))


def test_the_union_pool_is_read_once_for_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uniir, mbeir, _ = world(tmp_path, np.random.default_rng(6))
    read: list[int] = []
    monkeypatch.setattr(
        files_module, "read_blocks", lambda pool, **more: read_blocks(pool, 16, **more) if not read.append(len(pool)) else ()
    )
    scores = [
        one for found, _ in score_directory(EmbeddingFiles(uniir, "exp"), Layout(mbeir), pools=("union",)) for one in found
    ]
    assert len(scores) == 9
    assert sorted(read) == [11, 11, 11, 60, 60, 60]  # queries and pools of three tasks


def test_the_command_writes_run_files_and_the_table(tmp_path: Path) -> None:
    uniir, mbeir, _ = world(tmp_path, np.random.default_rng(3))
    done = mbeir_cot("score", "--uniir-dir", uniir, "--mbeir-dir", mbeir, "--suffix", "exp")
    assert done.returncode == 0, done.stderr
    assert "mean" in done.stdout
    results = uniir / "retrieval_results" / "exp"
    rows = (results / "final_tsv" / "eval_results_test.tsv").read_bytes().decode().split("\r\n")
    assert rows[0] == "TaskID\tTask\tDataset\tSplit\tMetric\tCandPool\tValue\tUnionPool\tUnionValue"
    cells = [row.split("\t") for row in rows[1:-1]]
    assert [(row[0], row[2], row[4], row[5]) for row in cells[:3]] == [
        ("3", "mscoco_task3", f"Recall@{k}", "mscoco_task3_test") for k in (1, 5, 10)
    ]
    assert [row[4] for row in cells[3:6]] == ["Recall@10", "Recall@20", "Recall@50"]
    assert all(row[7] == "union" for row in cells)
    names = sorted(path.name for path in (results / "run_files").iterdir())
    assert "mbeir_fashioniq_task7_union_pool_test_k50_run.txt" in names
    lines = (results / "run_files" / "mbeir_cirr_task7_single_pool_test_k10_run.txt").read_text().splitlines()
    assert len(lines) == 11 * 10
    qid, q0, did, rank, value, run, task = lines[0].split(" ")
    assert (q0, rank, run, task) == ("Q0", "1", "mbeir_cirr_task7_single_pool_test_k10", "7")
    assert qid.startswith("8:")
    assert did.startswith("8:")
    assert -1.001 <= float(value) <= 1.001


def test_queries_listed_as_unreadable_count_as_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uniir, mbeir, _ = world(tmp_path, np.random.default_rng(4))
    files = EmbeddingFiles(uniir, "exp")

    def values() -> dict[tuple[DatasetTask, str, int], float]:
        searches = score_directory(files, Layout(mbeir))
        return {(score.task, score.pool, score.k): score.value for scores, _ in searches for score in scores}

    before = values()
    save_exclusions(exclusions_path(files.queries(CIRR, "test")), [Exclusion("8:99", "mbeir_images/a.jpg", "missing", "")])
    after = values()
    assert all(before[CIRR, "single", k] > 0 for k in (5, 10))
    for key, value in before.items():
        hits = round(value * 11)
        assert after[key] == (round(hits / 12, 4) if key[0] == CIRR else value)
    score_command(uniir, mbeir, "exp")
    assert "cirr_task7: 1 queries could not be read and count as misses" in capsys.readouterr().out


def test_a_table_of_union_values_alone_is_empty() -> None:
    assert format_table([Score(CIRR, "test", "union", 5, 0.5)]).count("\r\n") == 1
    joined = format_table([Score(CIRR, "test", "single", 5, 1.0), Score(CIRR, "test", "union", 5, 0.9667)])
    assert joined.splitlines()[1].split("\t")[6:] == ["1.0", "union", "0.9667"]
    assert format_table([Score(CIRR, "test", "single", 5, 1.0)]).splitlines()[1].endswith("1.0\t\t")


def test_run_lines_name_missing_candidates_as_uniir_does() -> None:
    hits = TopK(np.array([[0, -1]]), np.array([[0.1, -3.4e38]], np.float32))
    lines = list(format_run(CIRR, hits, np.array([[hash_did("8:3"), -1]]), np.array([hash_qid("8:1")]), "run"))
    digits = [f"{value}" for value in hits.scores[0]]  # as UniIR's f-string formats them
    assert lines == [f"8:1 Q0 8:3 1 {digits[0]} run 7", f"8:1 Q0 -1:9999999 2 {digits[1]} run 7"]


def test_embedding_files_that_do_not_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the embeddings"):
        load_embeddings(tmp_path / "x_embed.npy")
    save(tmp_path / "a_embed.npy", np.ones((3, 2)), [1, 2])
    with pytest.raises(InputError, match="beside"):
        load_embeddings(tmp_path / "a_embed.npy")
    save(tmp_path / "b_embed.npy", np.ones((2, 2)), [1, 1])
    with pytest.raises(InputError, match="twice"):
        load_embeddings(tmp_path / "b_embed.npy")
