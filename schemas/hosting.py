"""Settings of a managed vLLM server. The defaults suit Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class ServerConfig(BaseModel):
    """One server. Every field says why one would change it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """A directory, or a repository on the Hugging Face Hub."""
    revision: str | None = None
    """Commit of a Hub repository: pin it, or the same config gives another teacher next month."""
    served_name: str = "teacher"
    """The name that requests use, and that provenance shows beside `model`."""
    device: Literal["cpu", "cuda"] = "cuda"
    """`cpu` runs small models for tests and the pocket default."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """`auto`: the checkpoint's own; on a CPU that would emulate bfloat16, float32."""
    max_model_len: PositiveInt = 8192
    """Prompt, images and answer together, in tokens. Longer prompts become rejections of their record."""
    images_per_prompt: NonNegativeInt = 2
    """A verification prompt shows the query's image and the target's."""
    min_pixels: PositiveInt | None = None
    """Smaller images are enlarged to this; None leaves it to the model's processor."""
    max_pixels: PositiveInt | None = 768 * 28 * 28
    """Pixel budget of an image: 768 visual tokens of Qwen2.5-VL. More detail costs prefill time. None: the model's own."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share one copy of the model: 4 for 72B in bfloat16 on 80 GB cards."""
    count: PositiveInt | None = None
    """Servers of this model, each on `tensor_parallel_size` GPUs of one node. None: as many as the free GPUs hold, on CPU one.
    Where teacher and verifier are both managed and neither says how many, the verifier gets one, the teacher as many as fit
    beside it, and the verifier what is left."""
    placement_timeout_s: NonNegativeFloat = 300
    """How long to wait for GPUs in use. Servers that would not fit on the empty cluster are refused at once."""
    api_servers: PositiveInt = 1
    """Processes that prepare images and speak HTTP. One prepares some 40 images a second at 800x600, 200 at M-BEIR's size:
    enough for 72B; 2 to 4 for a teacher of 3B or 7B."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.92
    max_num_seqs: PositiveInt = 256
    """Sequences decoded together: more gives throughput until the KV cache is full."""
    max_queued: PositiveInt | None = None
    """Answer 503 beyond this many waiting requests, so that clients slow down; None queues without bound."""
    enforce_eager: bool = False
    """Skip graph capture: starts sooner, decodes slower. Always on for CPU."""
    cpu_kv_cache_gib: PositiveInt = 1
    """Memory for the KV cache on CPU. vLLM accepts whole GiB only."""
    cpu_threads: str = "auto"
    """Cores to bind on CPU, e.g. `0-1`."""
    seed: int = 0
    trust_remote_code: bool = False
    """Runs Python code out of the model repository. Leave it off unless you have read that code."""
    media_root: Path | None = None
    """Images below this directory may be sent by path (client and server on one file system)."""
    extra_args: tuple[str, ...] = ()
    """Further command-line arguments of vLLM's server, as they are."""
    host: str = "127.0.0.1"
    """Address to listen on. Servers that serve other nodes of a cluster listen on all interfaces: keep that network private."""
    port: PositiveInt | None = None
    """None: a free port."""
    startup_timeout_s: PositiveFloat = 1800
    """Time until the server is healthy, counted from the end of the download. A large model loads for minutes from network
    storage."""
    unresponsive_timeout_s: PositiveFloat = 180
    """A server that does not answer health checks for this long is treated as dead."""
    restarts: NonNegativeInt = 3
    """Restarts of a server that dies again and again without answering a request, before the build gives up."""


class Endpoint(BaseModel):
    """Where a server answers. Keys are never part of it: see `api_key_env`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str
    """Base URL with the version, e.g. `http://127.0.0.1:8000/v1`."""
    model: str
    """The name that requests use."""
    revision: str | None = None
    """Your own name for the served model's version, part of every request key: change it when another model is served under the
    same name. None: `as served`; what the servers report about their model is compared in any case."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
