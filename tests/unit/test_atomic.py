"""Locked instructions."""

from __future__ import annotations

import ctypes
import threading

from pyvmm.atomic import bit_test_and_set, compare_exchange, memory_barrier


def test_bit_test_and_set_returns_the_old_bit_and_reaches_past_the_first_word() -> None:
    words = (ctypes.c_uint32 * 64)()
    assert bit_test_and_set(ctypes.addressof(words), 2047) == 0
    assert bit_test_and_set(ctypes.addressof(words), 2047) == 1
    assert words[63] == 1 << 31
    assert not any(words[:63])


def test_compare_exchange_stores_only_if_it_finds_what_is_expected() -> None:
    word = ctypes.c_uint32(5)
    assert compare_exchange(ctypes.addressof(word), 4, 9) == 5
    assert word.value == 5
    assert compare_exchange(ctypes.addressof(word), 5, 0xFFFFFFFF) == 5
    assert word.value == 0xFFFFFFFF


def test_each_bit_is_won_by_one_thread_only() -> None:
    words = (ctypes.c_uint32 * 8)()
    won: list[int] = []

    def claim() -> None:
        won.extend(n for n in range(256) if not bit_test_and_set(ctypes.addressof(words), n))

    threads = [threading.Thread(target=claim) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(256))


def test_the_barrier_can_be_called() -> None:
    memory_barrier()
