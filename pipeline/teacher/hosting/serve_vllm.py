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
    if "--api-server-count" in sys.argv:
        _serve_several()
        return
    from vllm.entrypoints.launchers.api_server.entry import main as serve  # noqa: PLC0415 (heavy)

    serve()


def _serve_several() -> None:
    """What `vllm serve` does. That command fails with CPU builds: it asks for the version of a package named `vllm`."""
    from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: PLC0415 (heavy)
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args  # noqa: PLC0415
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args()
    validate_parsed_serve_args(arguments)
    ServeSubcommand.cmd(arguments)


if __name__ == "__main__":
    main()
