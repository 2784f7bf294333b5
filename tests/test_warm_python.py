"""Processes that are forked from a warm Python say and end as those that ``python`` starts."""

import pytest


def test_a_process_has_words_and_variables_of_its_own_and_an_exit_code(python, tmp_path):
    code = (
        "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['MINE'], __name__, sys.stdin.read()); sys.exit(3)"
    )
    done = python.run("-c", code, "a b", folder=tmp_path, MINE="yes")
    assert (done.returncode, done.stdout) == (3, f"['a b'] {tmp_path} yes __main__ \n")


def test_a_process_that_takes_too_long_is_killed_and_the_next_one_gets_its_own_answer(python):
    with pytest.raises(TimeoutError, match="took more than 0.2 seconds"):
        python.run("-c", "import time; time.sleep(300)", timeout=0.2)
    assert python.run("-c", "print('next')").stdout == "next\n"
