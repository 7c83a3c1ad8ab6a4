"""Images that cannot be read: refused with an error that names file, record and setting; or left out, counted and listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.training_store import training_store
from pipeline.mbeir.check import check
from pipeline.mbeir.image_store import ImageProblem
from pipeline.mbeir.layout import Layout
from pipeline.mbeir.queries import read_queries
from schemas.errors import InputError
from schemas.mbeir import DatasetTask, hash_did, hash_qid
from schemas.training import EvaluationSettings, TrainConfig
from tests.support.cli import mbeir_cot
from tests.trainer.conftest import fresh
from trainer.data.dataset import Candidates, Records
from trainer.data.exclusions import load_exclusions
from trainer.data.unreadable import StudentBatches, readable_records
from trainer.evaluation.evaluate import Evaluation
from trainer.retrieval.index import IndexMetadata
from trainer.retrieval.index_builder import build_index

CIRR = DatasetTask("cirr", 7)


@pytest.fixture
def damaged(config: TrainConfig, tiny_world: Path, tmp_path: Path) -> tuple[TrainConfig, str, str]:
    """A world with one task of a few queries: (config, did of a thin candidate that is a query's only positive, qid of a query
    whose image is damaged)."""
    mbeir = tmp_path / "M-BEIR"
    shutil.copytree(tiny_world, mbeir, symlinks=True)
    layout = Layout.open(mbeir)
    for path in (mbeir / "query" / "val").iterdir():
        if path != layout.queries("val", CIRR):
            path.unlink()
    queries = [query for _, query in read_queries(layout.queries("val", CIRR))]
    pool = layout.local_pool(CIRR, "val")
    assert pool is not None
    lines = [json.loads(line) for line in pool.read_text().splitlines()]
    (thin,) = queries[0].pos_cand_list
    wanted = {did for query in queries for did in query.pos_cand_list}
    others = [row for row in lines if row["did"] not in wanted][:10]
    rows = [row for row in lines if row["did"] in wanted] + others
    Image.new("RGB", (3000, 10)).save(mbeir / "mbeir_images" / "thin.png")
    (mbeir / "mbeir_images" / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    for row in rows:
        if row["did"] == thin:
            row["img_path"] = "mbeir_images/thin.png"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = layout.queries("val", CIRR)
    asked = [json.loads(line) for line in file.read_text().splitlines()]
    asked[3]["query_img_path"] = "mbeir_images/damaged.jpg"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    data = config.data.model_copy(update={"mbeir": mbeir, "candidate_cache": tmp_path / "cache"})
    settings = EvaluationSettings(split="val", union=False)
    return config.model_copy(update={"data": data, "evaluation": settings}), thin, asked[3]["qid"]


def skipping(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"skip_unreadable": True})})


@pytest.mark.slow
def test_an_evaluation_refuses_or_leaves_out(damaged: tuple[TrainConfig, str, str], tmp_path: Path) -> None:
    config, thin, qid = damaged
    with Evaluation(config, None, tmp_path / "eval") as evaluation:
        with pytest.raises(InputError) as caught:
            evaluation.embed_pools("base")
        for said in (f"candidate {thin}", "thin.png", "3000x10", "data.skip_unreadable=true"):
            assert said in str(caught.value)

    with Evaluation(skipping(config), None, tmp_path / "eval") as evaluation:
        evaluation.embed_pools("base")
        (notice,) = evaluation.notices
        assert notice.startswith(
            f"cirr_task7: candidates left out because their images cannot be read: 1: {thin} (mbeir_images/thin.png"
        )
        assert "queries without another positive, which count as misses: 1" in notice
        result, embedded = evaluation.run("base", "base", "always-direct")
        assert f"queries left out because their images cannot be read: 1: cirr_task7/{qid}" in evaluation.notices[1]
        assert evaluation.notices[1].endswith("; they count as misses")
        candidates = tmp_path / "eval" / "embed" / "base" / "cand_pool" / "mbeir_cirr_task7_cand_pool_ids.npy"
        ids, vectors = np.load(candidates), np.load(candidates.with_name(candidates.name.replace("_ids", "_embed")))
        assert hash_did(thin) not in ids
        assert len(ids) == len(vectors) == len(set(ids.tolist()))
        assert [one.name for one in load_exclusions(candidates.with_name("mbeir_cirr_task7_cand_pool_unreadable.json"))] == [
            thin
        ]
        asked = np.load(tmp_path / "eval" / "embed" / "base" / "val" / "mbeir_cirr_task7_val_ids.npy")
        assert hash_qid(qid) not in asked
        assert result.tasks[0].costs.queries == len(embedded) == len(asked) == 11
        assert result.tasks[0].unreadable == 1
        hits = hits_at(5, tmp_path / "eval", config)
        assert 0 < hits < 11
        assert result.tasks[0].local == round(hits / 12, 4)
        again = evaluation.run("base again", "base", "always-direct")[0]
        assert again.tasks[0].local == result.tasks[0].local

        (tmp_path / "index").mkdir()
        (tmp_path / "index" / "embed-0.log").write_text("an actor's, which starts before the index\n")
        data, images = skipping(config).data, training_store(config)
        paths = [pool_of(config)]
        index = build_index(tmp_path / "index", card_of(config, tmp_path), paths, evaluation.workers, images=images, data=data)
        assert sorted(index.ids.tolist()) == sorted(ids.tolist())
        assert [one.name for one in load_exclusions(tmp_path / "index" / "unreadable.json")] == [thin]

    # the image is mended: the next evaluation has the candidate, and embeds no other one again
    Image.new("RGB", (30, 30), "red").save(config.data.mbeir / "mbeir_images" / "thin.png")
    before, kept = dict(zip(ids.tolist(), vectors, strict=True)), candidates.with_name("mbeir_cirr_task7_cand_pool_embed.npy")
    with Evaluation(skipping(config), None, tmp_path / "eval") as evaluation:
        evaluation.embed_pools("base")
        assert evaluation.notices == []
    after = dict(zip(np.load(candidates).tolist(), np.load(kept), strict=True))
    lines = pool_of(config).read_text().splitlines()
    assert list(after) == [hash_did(json.loads(line)["did"]) for line in lines]
    assert after.keys() - before.keys() == {hash_did(thin)}
    assert all(np.array_equal(after[did], vector) for did, vector in before.items())
    assert np.isclose(np.linalg.norm(after[hash_did(thin)].astype(np.float32)), 1, atol=1e-2)


@pytest.mark.slow
def test_a_disk_that_is_not_mounted_is_not_a_pool_of_text(damaged: tuple[TrainConfig, str, str], tmp_path: Path) -> None:
    """Not even with skip_unreadable; and once it is mounted, the same evaluation has all candidates."""
    config = skipping(damaged[0])
    images, away = config.data.mbeir / "mbeir_images", config.data.mbeir / "away"
    lines = [json.loads(line) for line in pool_of(config).read_text().splitlines()]
    text = {"txt": "a text", "img_path": None, "modality": "text", "src_content": None}
    lines += [text | {"did": did} for did in ("8:4000001", "8:4000002")]
    pool_of(config).write_text("".join(json.dumps(line) + "\n" for line in lines))
    images.rename(away)
    images.mkdir()
    for said in (r"only 2 of \d+ can be read", "is the disk with the images mounted"):
        with Evaluation(config, None, tmp_path / "eval") as evaluation, pytest.raises(InputError, match=said):
            evaluation.embed_pools("base")
    allowed = config.model_copy(update={"data": config.data.model_copy(update={"most_unreadable": 1.0})})
    with Evaluation(allowed, None, tmp_path / "eval") as evaluation:
        evaluation.embed_pools("base")
        assert len(evaluation.notices) == 1
    pool_of(config).write_text("".join(json.dumps(line) + "\n" for line in lines[:-2]))
    with (
        Evaluation(config, None, tmp_path / "eval") as evaluation,
        pytest.raises(InputError, match="none can be read"),
    ):
        evaluation.embed_pools("base")
    images.rmdir()
    away.rename(images)
    with Evaluation(config, None, tmp_path / "eval") as evaluation:
        evaluation.embed_pools("base")
    ids = np.load(tmp_path / "eval" / "embed" / "base" / "cand_pool" / "mbeir_cirr_task7_cand_pool_ids.npy")
    assert len(ids) == len(lines) - 2 - 1  # but for the one that the processor refuses


@pytest.mark.slow
def test_ray_actors_leave_out_the_same(damaged: tuple[TrainConfig, str, str], tmp_path: Path) -> None:
    config = skipping(damaged[0])
    evaluated = []
    for workers in (1, 2):
        directory = tmp_path / f"eval{workers}"
        settings = config.evaluation.model_copy(update={"workers": workers})
        with Evaluation(config.model_copy(update={"evaluation": settings}), None, directory) as evaluation:
            evaluation.embed_pools("base")
            result, _ = evaluation.run("base", "base", "always-direct")
        lists = {path.relative_to(directory): path.read_text() for path in directory.rglob("*unreadable*.json")}
        notices = [notice.replace(str(directory), "") for notice in evaluation.notices]
        evaluated.append((result.tasks[0].local, result.tasks[0].unreadable, lists, notices))
    assert evaluated[0] == evaluated[1]
    assert len(evaluated[0][2]) == 3  # the pool's list, the query file's, and that of all queries
    logs = [
        path.read_text() for path in (tmp_path / "eval2").glob("embed-[01].log")
    ]  # one may do it all before the other starts
    assert logs
    assert all("trainer.embedding.workers: loaded" in log for log in logs)


def hits_at(k: int, directory: Path, config: TrainConfig) -> int:
    """Queries with a positive among the first k of the run file."""
    run = directory / "retrieval_results" / "base" / "run_files" / "mbeir_cirr_task7_single_pool_val_k10_run.txt"
    lines = [line.split() for line in run.read_text().splitlines()]
    queries = [query for _, query in read_queries(Layout.open(config.data.mbeir).queries("val", CIRR))]
    positives = {query.qid: query.pos_cand_list for query in queries}
    return len({qid for qid, _, did, rank, *_ in lines if int(rank) <= k and did in positives[qid]})


def pool_of(config: TrainConfig) -> Path:
    path = Layout.open(config.data.mbeir).local_pool(CIRR, "val")
    assert path is not None
    return path


def card_of(config: TrainConfig, directory: Path) -> IndexMetadata:
    return IndexMetadata(
        run=directory, variant="trace", embedder_sha256="x", mbeir=config.data.mbeir, cache=config.data.candidate_cache, pools=("p",),
        count=0, dim=0,
    )  # fmt: skip


@pytest.mark.slow
def test_mbeir_check_applies_the_processors_rule(damaged: tuple[TrainConfig, str, str]) -> None:
    config, _, _ = damaged
    found = {one.code: one for one in check(config.data.mbeir, decode=True).findings}
    assert "mbeir_images/thin.png: 3000x10 pixels" in str(found["image_aspect_ratio"])
    assert "mbeir_images/damaged.jpg" in str(found["image_not_an_image"])
    images, processor = training_store(config), fresh(config).processor.image_processor
    for size, fits in (((2000, 10), True), ((2001, 10), False), ((10, 2010), False), ((1, 1), True), ((1, 200), True)):
        picture = Image.new("RGB", size)
        picture.save(config.data.mbeir / "mbeir_images" / "shape.png")
        if fits:
            processor(images=[images.open("mbeir_images/shape.png")], return_tensors="pt")
            continue
        with pytest.raises(ImageProblem, match="ratio above 200"):
            images.open("mbeir_images/shape.png")
        with pytest.raises(ValueError, match="aspect ratio"):
            processor(images=[picture], return_tensors="pt")


@pytest.mark.slow
def test_a_training_leaves_out_records_and_negatives(config: TrainConfig, small_world: Path, tmp_path: Path) -> None:
    mbeir = tmp_path / "M-BEIR"
    shutil.copytree(small_world, mbeir)
    data = config.data.model_copy(update={"mbeir": mbeir, "hard_negatives": 1, "candidate_cache": tmp_path / "cache"})
    config = config.model_copy(update={"data": data, "out": tmp_path / "run"})
    records = Records.load(config.data.dataset)
    candidates = Candidates(mbeir, records.split, config.data.candidate_cache)
    rows = records.table.to_pylist()
    query = next(row for row in rows if row["query_image"])
    (mbeir / query["query_image"]).unlink()
    shown = {one.did: one.img_path for one in candidates.fetch([row["positives"][0] for row in rows]) if one.img_path}
    positive = next(row for row in rows if row["positives"][0] in shown and row["query_image"] != query["query_image"])
    Image.new("RGB", (3000, 10)).save(mbeir / shown[positive["positives"][0]], "PNG")

    source = StudentBatches(
        config, "trace", records, traces=records.traces(), encoder=fresh(config).encoder(), candidates=candidates
    )
    for row, who in ((query, f"record {query['id']}"), (positive, f"candidate {positive['positives'][0]}")):
        with pytest.raises(InputError) as caught:
            source.encode_query(records.item(rows.index(row)), 0)
            source.encode_candidate(candidates.fetch(row["positives"])[0])
        assert who in str(caught.value)
        assert "data.skip_unreadable=true" in str(caught.value)

    kept = readable_records(skipping(config), records, candidates)
    left_out = load_exclusions(tmp_path / "run" / "unreadable.json")
    assert {query["id"], positive["id"]} <= {one.name for one in left_out}
    assert len(kept) == len(records) - len(left_out)
    ids = kept.table["id"].to_pylist()
    assert query["id"] not in ids
    assert positive["id"] not in ids
    assert ids == [name for name in records.table["id"].to_pylist() if name not in {one.name for one in left_out}]
    gone = {one["name"] for one in json.loads((tmp_path / "run" / "unreadable.json").read_text())["images"]}
    assert positive["positives"][0] in gone
    assert not any(gone & {*row["positives"], *row["hard_negatives"]} for row in kept.table.to_pylist())
    source = StudentBatches(config, "trace", kept, traces=kept.traces(), encoder=fresh(config).encoder(), candidates=candidates)
    assert len(source.make_batch(0).ids) == config.batch.global_batch_size
    shutil.rmtree(mbeir / "mbeir_images")  # a resumed run checks no image again
    assert readable_records(skipping(config), records, candidates).table.equals(kept.table)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_train_command_refuses_or_leaves_out(
    train_file: Path, small_world: Path, tmp_path: Path, processes: str, config: TrainConfig
) -> None:
    mbeir = tmp_path / "M-BEIR"
    shutil.copytree(small_world, mbeir)
    rows = Records.load(config.data.dataset).table.to_pylist()
    for image in {row["query_image"] for row in rows if row["query_image"]}:
        (mbeir / image).unlink()
    given = (
        "--processes",
        processes,
        "--out",
        tmp_path / "run",
        "--set",
        f"data.mbeir={mbeir}",
        "--set",
        "optimiser.max_steps=1",
    )
    refused = mbeir_cot("train", train_file, *given, timeout=200)
    assert refused.returncode == 2
    assert "data.skip_unreadable=true" in refused.stderr
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    done = mbeir_cot("train", train_file, *given, "--set", "data.skip_unreadable=true", timeout=200)
    assert done.returncode == 0, done.stderr
    left_out = load_exclusions(tmp_path / "run" / "unreadable.json")
    assert {one.name for one in left_out} == {row["id"] for row in rows if row["query_image"]}
    assert "left out" in done.stdout
