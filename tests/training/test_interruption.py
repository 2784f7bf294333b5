"""Signals: noted while work runs, raised between steps, and Python's own handling restored."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from peft_noah.training import interruption
from peft_noah.training.interruption import Interrupted, Interruption, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_says_how_to_go_on(number):
    with Interruption() as noted:
        noted.check()
        signal.raise_signal(number)
        assert noted.signal == number
        with pytest.raises(
            Interrupted, match=rf"search stopped \({number.name}\). Type the same command again"
        ) as info:
            noted.check("search stopped")
    assert info.value.exit_code == 128 + number


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    with pytest.raises(RuntimeError), Interruption():
        assert [signal.getsignal(number) for number in interruption.SIGNALS] != before
        raise RuntimeError
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def test_off_the_main_thread_nothing_is_installed():
    seen = []

    def work():
        before = signal.getsignal(signal.SIGINT)
        with Interruption() as noted:
            seen.append((signal.getsignal(signal.SIGINT) is before, noted.signal))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, 0)]


def test_a_signal_that_nobody_asked_for_is_raised_at_the_end():
    with pytest.raises(Interrupted, match="same command"), Interruption():
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(ValueError), Interruption():  # what went wrong matters more
        signal.raise_signal(signal.SIGTERM)
        raise ValueError


def test_what_may_never_end_stops_at_once():
    with pytest.raises(Interrupted, match="same command"), Interruption() as noted:
        noted.at_once = True
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("went on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_stops_at_once_with_a_message_where_nothing_notes_signals(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="same command") as info, interruptible():
        signal.raise_signal(number)
    assert info.value.exit_code == 128 + number and signal.getsignal(number) is before


def test_no_except_exception_swallows_it():
    with pytest.raises(KeyboardInterrupt):
        try:
            raise Interrupted("stopped", signal.SIGTERM)
        except Exception:
            pytest.fail("taken for an error")


def test_an_echo_of_ctrl_c_is_ignored_and_a_second_one_kills():
    code = """
import runpy, sys, time
with runpy.run_path(sys.argv[1])["Interruption"]() as noted:
    print("ready", flush=True)
    while not noted.signal: time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, interruption.__file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted\n"
    process.send_signal(signal.SIGINT)
    time.sleep(interruption.ECHO + 0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    process.stdout.close()
