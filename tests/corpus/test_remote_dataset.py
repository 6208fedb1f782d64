"""Remote data: an S3 server on this machine gives the same batches as the directory, through a
cache with a limit.
"""

import dataclasses
import hashlib
import shutil
import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_pretrain.batch import Batch
from lit_pretrain.corpus.chunk_cache import download, fetch, load_manifest
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.data.text.text_data import TextData
from lit_pretrain.errors import UserError

BUCKET = "corpus"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint(s3_server: str) -> Iterator[str]:
    """Put credentials for the S3 server into the environment; yield its address."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield s3_server


@pytest.fixture(scope="module")
def client(endpoint: str) -> Any:
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    return client


def upload(client: Any, directory: Path, prefix: str) -> str:
    for file in directory.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(directory)}")
    return f"s3://{BUCKET}/{prefix}"


@pytest.fixture(scope="module")
def url(client: Any, dataset: Path) -> str:
    return upload(client, dataset, "deep/tiny")


def text_data(path: Path | str, *, step: int = 0, **options: Any) -> TextData:
    data = TextData(
        path=str(path),
        seq_len=64,
        global_batch_tokens=64 * 32,
        micro_batch_size=32,
        val_tokens=64 * 20,
        **options,
    )
    strategy = SimpleNamespace(distributed_sampler_kwargs=None, root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, global_step=step)
    return data


def same(a: list[Batch], b: list[Batch]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def cached_bytes(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.rglob("chunk-*.bin"))


def test_batches_equal_the_local_ones_and_the_cache_stays_within_its_limit(
    dataset: Path, url: str, endpoint: str, tmp_path: Path
) -> None:
    limit = 120_000  # of 221 kB in nine chunks
    remote = text_data(
        url,
        cache_dir=str(tmp_path),
        max_cache_size="120kB",
        storage_options={"endpoint_url": endpoint},
        shuffle_chunks=1,
    )
    local = text_data(dataset)
    assert remote.contract == local.contract
    remote.setup("fit")
    steps = 130  # more than two epochs: every chunk is dropped and fetched again
    sizes = []
    for a, b in islice(
        zip(local.train_dataloader(), remote.train_dataloader(), strict=True), steps
    ):
        assert all(same(x, y) for x, y in zip(a, b, strict=True))
        sizes.append(cached_bytes(tmp_path))
    assert max(sizes) <= limit
    assert max(sizes) > limit / 2  # it is used, too
    for a, b in zip(local.val_dataloader(), remote.val_dataloader(), strict=True):
        assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert cached_bytes(tmp_path) <= limit
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".fetch-")]


def test_it_resumes_from_the_middle_with_a_worker_and_a_cold_cache(
    dataset: Path, url: str, endpoint: str, tmp_path: Path
) -> None:
    remote = text_data(
        url,
        step=37,
        cache_dir=str(tmp_path),
        max_cache_size="400kB",
        storage_options={"endpoint_url": endpoint},
        num_workers=1,
        shuffle_chunks=2,
    )
    local = text_data(dataset, step=37, shuffle_chunks=2)
    for a, b in islice(zip(local.train_dataloader(), remote.train_dataloader(), strict=True), 20):
        assert all(same(x, y) for x, y in zip(a, b, strict=True))


def test_a_cache_that_cannot_hold_what_is_read_at_once_is_refused(
    url: str, endpoint: str, tmp_path: Path
) -> None:
    data = text_data(
        url,
        cache_dir=str(tmp_path),
        max_cache_size="50kB",
        storage_options={"endpoint_url": endpoint},
    )
    with pytest.raises(UserError, match=r"max_cache_size=50kB does not hold .* 3 sources × 1"):
        data.train_dataloader()


def test_a_replaced_dataset_is_noticed(
    client: Any, endpoint: str, dataset: Path, tmp_path: Path
) -> None:
    """The manifest is fetched afresh, and copies of chunks that it no longer names are fetched
    again.
    """
    where, options = upload(client, dataset, "replaced"), {"endpoint_url": endpoint}

    def first_row() -> list[int]:
        data = text_data(
            where, cache_dir=str(tmp_path / "cache"), storage_options=options, weights={"sums": 1.0}
        )
        return list(data.readers("train")[1][0].tokens[:5])

    before = first_row()
    manifest = Manifest.load(dataset)
    sums = manifest.sources["sums"]
    chunk = sums.splits["train"].chunks[0]
    raw = bytearray((dataset / "train" / "sums" / chunk.filename).read_bytes())
    raw[4 * (chunk.documents + 2)] ^= 1  # the first token
    client.put_object(Bucket=BUCKET, Key=f"replaced/train/sums/{chunk.filename}", Body=bytes(raw))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(
        UserError, match="is not the chunk that the manifest names"
    ):  # half replaced: the old manifest, a new chunk
        first_row()
    other = dataclasses.replace(chunk, sha256=hashlib.sha256(raw).hexdigest())
    train = dataclasses.replace(
        sums.splits["train"], chunks=(other, *sums.splits["train"].chunks[1:])
    )
    changed = dataclasses.replace(
        manifest,
        sources={
            **manifest.sources,
            "sums": dataclasses.replace(sums, splits={**sums.splits, "train": train}),
        },
    )
    client.put_object(Bucket=BUCKET, Key="replaced/manifest.json", Body=changed.dump().encode())
    assert first_row() == [before[0] ^ 1, *before[1:]]
    client.upload_file(str(dataset / "manifest.json"), BUCKET, "replaced/manifest.json")
    client.upload_file(
        str(dataset / "train" / "sums" / chunk.filename),
        BUCKET,
        f"replaced/train/sums/{chunk.filename}",
    )
    assert first_row() == before  # although a good copy of the other chunk lies in the cache


# ---------------------------------------------------------------------- what can go wrong


def short(error: UserError) -> bool:
    """One sentence or two for a person, not a store client's inner state."""
    return len(str(error)) < 500 and "\n" not in str(error)


def test_a_missing_dataset_is_said_in_one_sentence(
    endpoint: str, client: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"cannot fetch s3://corpus/nothing/manifest\.json"
    ) as caught:
        load_manifest(
            f"s3://{BUCKET}/nothing",
            cache_dir=str(tmp_path),
            storage_options={"endpoint_url": endpoint},
        )
    assert short(caught.value)


def test_a_missing_bucket_is_said_in_one_sentence(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch s3://elsewhere/x/manifest\.json") as caught:
        load_manifest(
            "s3://elsewhere/x", cache_dir=str(tmp_path), storage_options={"endpoint_url": endpoint}
        )
    assert short(caught.value)


def test_an_endpoint_where_nobody_listens_is_said_in_one_sentence(
    endpoint: str, tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        UserError, match=r"Connection refused.*check the address, the credentials"
    ) as caught:
        load_manifest(
            f"s3://{BUCKET}/tiny", cache_dir=str(tmp_path), storage_options={"endpoint_url": nobody}
        )
    assert short(caught.value)


def test_a_missing_chunk_is_said_in_one_sentence(
    client: Any, endpoint: str, dataset: Path, tmp_path: Path
) -> None:
    where = upload(client, dataset, "holes")
    client.delete_object(Bucket=BUCKET, Key="holes/train/sums/chunk-0-0.bin")
    data = text_data(
        where,
        cache_dir=str(tmp_path),
        storage_options={"endpoint_url": endpoint},
        weights={"sums": 1.0},
    )
    with pytest.raises(
        UserError, match=r"cannot fetch s3://corpus/holes/train/sums/chunk-0-0\.bin"
    ) as caught:
        list(islice(data.train_dataloader(), 60))
    assert short(caught.value)


def test_a_file_appears_whole_or_not_at_all(url: str, endpoint: str, tmp_path: Path) -> None:
    def refuse(file: Path) -> None:
        raise UserError("no")

    target = tmp_path / "manifest.json"
    target.write_text("old")
    with pytest.raises(UserError, match="no"):
        download(
            f"{url}/manifest.json", target, storage_options={"endpoint_url": endpoint}, check=refuse
        )
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    download(f"{url}/manifest.json", target, storage_options={"endpoint_url": endpoint})
    assert target.read_text() != "old"


def test_local_files_are_not_copied(dataset: Path) -> None:
    assert (
        fetch(str(dataset), "tokenizer.json", cache_dir=None, storage_options=None)
        == dataset / "tokenizer.json"
    )
