"""Processes that begin with everything imported, so that a test can afford several."""

import multiprocessing
import os
import sys

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["processes", "sfumato.cli", "sfumato.training", "transformers"])


def start(folder, *arguments):
    """`sfumato ARGUMENTS` in `folder`, its output in `output.txt` there."""
    process = CONTEXT.Process(target=_command, args=(folder, [str(one) for one in arguments]))
    process.start()
    return process


def _command(folder, arguments):
    from sfumato.cli import main

    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["sfumato", *arguments]
    main(arguments)
