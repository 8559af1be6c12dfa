"""A broker's limit is found, and a bad line is not taken for one for ever."""

from gateway.payload import PAYLOAD_BYTES_MIN, RAISE_S, RAISE_S_MAX, STRIKES, PayloadLimit

MOST = 64 << 10


class Day:
    """A broker that takes `takes` bytes at most, a gateway that sends `sends`, and time."""

    def __init__(self, takes: int, sends: int) -> None:
        self.takes, self.sends = takes, sends
        self.limit = PayloadLimit(MOST)
        self.now, self.ends = 0.0, 0

    def run(self, seconds: float) -> None:
        """Send every second; what is too large ends the connection, and the next one stands at once."""
        self.limit.connected(self.now)
        began, taken = self.now, 0
        for _ in range(int(seconds)):
            self.now += 1.0
            self.limit.tick(self.now)
            size = min(self.sends, self.limit.size_bytes)
            if size > self.takes:
                self.ends += 1
                self.limit.ended(size, taken, steady=self.now - began >= RAISE_S)
                self.limit.connected(self.now)
                began, taken = self.now, 0
            else:
                taken = max(taken, size)


def broken(size: int, times: int = STRIKES) -> PayloadLimit:
    limit = PayloadLimit(MOST)
    for _ in range(times):
        limit.connected(0.0)
        limit.ended(size, 0, steady=False)
    return limit


def test_connections_that_end_just_after_large_messages_make_messages_smaller() -> None:
    assert broken(9001, STRIKES - 1).size_bytes == MOST
    assert broken(9001).size_bytes == 4500
    assert broken(5000).size_bytes == PAYLOAD_BYTES_MIN
    assert broken(PAYLOAD_BYTES_MIN, 99).size_bytes == MOST


def test_a_steady_connection_is_no_reason_to_send_less() -> None:
    limit = PayloadLimit(MOST)
    for _ in range(9):
        assert not limit.ended(9000, 0, steady=True)
    assert limit.size_bytes == MOST


def test_while_a_connection_stands_the_limit_rises_until_it_is_where_it_began() -> None:
    limit = broken(9001)
    limit.connected(100.0)
    assert not limit.tick(100.0 + RAISE_S - 1)
    assert limit.tick(100.0 + RAISE_S)
    assert limit.size_bytes >= 9001
    now, rises = 100.0 + RAISE_S, 1
    while limit.size_bytes < MOST:
        now += RAISE_S
        rises += limit.tick(now)
    assert rises <= 4
    assert not limit.tick(now + 1e9)


def test_without_a_connection_nothing_rises() -> None:
    limit = broken(9001)
    assert not limit.tick(1e9)


def test_one_hang_up_over_a_larger_message_than_ever_taken_is_enough_to_fall_back() -> None:
    limit = broken(40_000)
    limit.connected(0.0)
    limit.tick(RAISE_S)
    assert limit.size_bytes > 40_000
    assert limit.ended(40_500, 20_480, steady=True)
    assert limit.size_bytes == 20_480
    limit.connected(100.0)
    assert not limit.tick(100.0 + RAISE_S), "the second doubt comes later"
    assert limit.tick(100.0 + 4 * RAISE_S)


def test_a_broker_with_a_limit_hangs_up_seldom_and_one_without_gets_whole_messages_again() -> None:
    day = Day(takes=20_480, sends=60_000)
    day.run(2 * RAISE_S_MAX)
    assert day.ends <= 2 * STRIKES + 12, day.ends
    assert day.limit.size_bytes >= 10_240
    day.takes = MOST
    day.run(2 * RAISE_S_MAX)
    assert day.limit.size_bytes == MOST
