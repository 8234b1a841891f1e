"""A program that imports multiprocessing after its client was created and used."""

from __future__ import annotations

from programs.common import main, make, work


def forked() -> None:
    letter = make(flush_interval=30)
    work(letter, 50, "parent")
    import multiprocessing

    context = multiprocessing.get_context("fork")
    child = context.Process(target=work, args=(letter, 50, "job 0"))
    child.start()
    child.join(60)


main(globals())
