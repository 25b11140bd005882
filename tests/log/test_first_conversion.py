from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from millstream.conversion import ready

RACE = textwrap.dedent(
    """
    from __future__ import annotations
    import sys, threading
    from decimal import Decimal
    import msgspec
    import millstream as ms
    from millstream.cqrs.validation import checked
    from millstream.events import decoder, encode

    sys.setswitchinterval(1e-6)
    for number in range(150):
        class Line(msgspec.Struct):
            article: str
            price: Decimal

        class Placed(ms.Event, type=f"RacedPlaced{number}"):
            lines: list[Line]

        class Place(ms.Command):
            lines: list[Line]

        sys.modules["__main__"].__dict__["Line"] = Line
        starting = threading.Barrier(8)

        def work(mine: int) -> None:
            starting.wait()
            lines = [Line("a", Decimal("1.5"))]
            if mine % 2:
                checked(Place(lines=lines))
            else:
                decoder(Placed).decode(encode(Placed(lines=lines)))

        threads = [threading.Thread(target=work, args=(mine,)) for mine in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print("done")
    """
)


def test_many_threads_may_be_the_first_to_convert_to_a_class() -> None:
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", RACE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr[-2_000:]) == (0, "done\n", "")


def test_what_cannot_be_resolved_says_so_each_time() -> None:
    for _ in range(2):
        with pytest.raises((NameError, TypeError)):
            ready("Nowhere")
