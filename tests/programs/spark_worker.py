"""A task of PySpark, in place of `pyspark.worker`."""

from __future__ import annotations

import os
from typing import BinaryIO

from pyspark.serializers import read_int, write_int

from programs.jobs import job


def main(infile: BinaryIO, outfile: BinaryIO) -> None:
    job(read_int(infile))
    write_int(os.getpid(), outfile)
    outfile.flush()
