"""Asks the process of `ready` to run a command, with the streams that it has itself, and ends as the command does."""

import json
import os
import signal
import socket
import sys

with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(sys.argv[1])
    socket.send_fds(asked, [b"3"], [0, 1, 2])
    request = {"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
    asked.sendall(json.dumps(request).encode())
    asked.shutdown(socket.SHUT_WR)
    with asked.makefile("rb") as told:
        pid = int(told.readline())
        # What interrupts this process is meant for the command.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = told.readline()
sys.exit(int(code))
