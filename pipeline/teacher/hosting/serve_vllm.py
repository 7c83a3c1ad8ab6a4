"""vLLM's OpenAI server in this process, ended with its supervisor.

    python -m pipeline.teacher.hosting.serve_vllm SUPERVISOR_PID ARGUMENTS

vLLM starts its engine in a further process that imports this module again: what stands outside `main` runs there too.
"""

from __future__ import annotations

import os
import sys

from pipeline.teacher.hosting.supervise import watch_parent
from pipeline.teacher.hosting.torchvision_ops import declare_missing_ops

declare_missing_ops()


def main() -> None:
    supervisor = int(sys.argv.pop(1))
    watch_parent(supervisor)
    if os.getppid() != supervisor:
        return
    from vllm.entrypoints.launchers.api_server.entry import main as serve  # noqa: PLC0415 (heavy)

    serve()


if __name__ == "__main__":
    main()
