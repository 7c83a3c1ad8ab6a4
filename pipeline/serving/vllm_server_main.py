"""vLLM's OpenAI server in this process, ended with its supervisor.

python -m pipeline.serving.vllm_server_main SUPERVISOR_PID ARGUMENTS
"""

from __future__ import annotations

import os
import sys

from pipeline.serving.supervise import watch_parent


def main() -> None:
    supervisor = int(sys.argv.pop(1))
    watch_parent(supervisor)
    if os.getppid() != supervisor:
        return
    if "--api-server-count" in sys.argv:
        _serve_several()
        return
    from vllm.entrypoints.launchers.api_server.entry import main as serve  # noqa: PLC0415 (heavy)

    serve()


def _serve_several() -> None:
    """Does what `vllm serve` does. That command fails with CPU builds, because it asks for the version of a package named
    `vllm`.

    Parser and checks come from the subcommand, whose place is stable between vLLM versions; theirs is not.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: PLC0415 (heavy)
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    serve, parser = ServeSubcommand(), FlexibleArgumentParser()
    serve.subparser_init(parser.add_subparsers())
    arguments = parser.parse_args([serve.name, *sys.argv[1:]])
    serve.validate(arguments)
    serve.cmd(arguments)


if __name__ == "__main__":
    main()
