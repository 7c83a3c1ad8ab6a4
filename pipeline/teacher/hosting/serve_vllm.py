"""vLLM's OpenAI server in this process, ended with its supervisor.

python -m pipeline.teacher.hosting.serve_vllm SUPERVISOR_PID ARGUMENTS
"""

from __future__ import annotations

import os
import sys

from pipeline.teacher.hosting.supervise import watch_parent


def main() -> None:
    supervisor = int(sys.argv.pop(1))
    watch_parent(supervisor)
    if os.getppid() != supervisor:
        return
    from vllm.entrypoints.launchers.api_server.entry import main as serve  # noqa: PLC0415 (heavy)

    serve()


if __name__ == "__main__":
    main()
