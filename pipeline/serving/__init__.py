"""Runs vLLM servers as child processes: starts, watches and restarts them, and leaves none behind.

`command` says how a server is started, `model_check` what can be known to fail before, `server` runs one server's life,
`supervise` and `vllm_server_main` run in the child, `pool` holds one server per GPU under Ray, `preflight` asks endpoints what
they can do.
"""
