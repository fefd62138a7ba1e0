"""Run `autogaze ...` and send this process a signal when it first calls a function.

python -m tests.interrupt_at MODULE:FUNCTION SIGNAL WORDS...
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time

from autogaze.cli.main import main

if __name__ == "__main__":
    module, function = sys.argv[1].split(":")
    number = signal.Signals[sys.argv[2]]
    del sys.argv[1:3]
    if number is signal.SIGINT:
        signal.signal(number, signal.default_int_handler)  # it is ignored in what a shell runs in the background,
    else:
        signal.signal(number, signal.SIG_DFL)  # and SIGHUP under nohup
    home = importlib.import_module(module)
    original = getattr(home, function)

    def interrupted(*arguments: object, **settings: object) -> object:
        setattr(home, function, original)
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # Python raises between two of its instructions
        return original(*arguments, **settings)

    setattr(home, function, interrupted)
    sys.exit(main())
