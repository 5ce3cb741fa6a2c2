"""Messages in the shape of every official library, with what becomes of each."""

from collections.abc import Callable

import pytest

from pointillist_destination.v1 import event_pb2
from service.events.segment_json import Imported, Skipped, import_line
from tests.support.paths import DATA

LIBRARIES = DATA / "segment_libraries.jsonl"
RESULTS = [result for line in LIBRARIES.read_bytes().splitlines() for result in import_line(line)]
IMPORTED = {
    message.message_id or message.user_id: (message, result)
    for result in RESULTS
    if isinstance(result, Imported)
    for message in [result.event.track if result.event.HasField("track") else result.event.identify]
}

Message = event_pb2.Track | event_pb2.Identify


def test_every_library_is_understood() -> None:
    assert len(IMPORTED) == 18
    assert [result for result in RESULTS if not isinstance(result, Imported)] == [Skipped("page")]


@pytest.mark.parametrize(
    ("name", "timestamp"),
    [
        ("ajs-next-1771885735111-862ff25a", "2026-02-23T22:28:55.111Z"),
        ("python-1", "2026-02-23T22:28:55.111222Z"),
        ("go-1", "2026-02-23T22:28:55.111222333Z"),
        ("ruby-1", "2024-03-10T02:30:00Z"),
        ("6a1f0c9e-php", "2026-02-23T22:28:55.000123Z"),
        ("dotnet-1", "2026-02-23T21:28:55.111222300Z"),
        ("SWIFT-1", "2026-02-23T22:28:55.111Z"),
    ],
)
def test_each_librarys_timestamp_is_read_to_its_last_digit(name: str, timestamp: str) -> None:
    assert IMPORTED[name][0].timestamp.ToJsonString() == timestamp


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("ajs-next-1771885735111-862ff25a", ("", "2ff25a7e-2e3e-463e-be8e-f9224bdc3967")),
        ("node-next-1771885735111-0f5dd6b6-01c4-43ae", ("", "node-anon")),
        ("python-1", ("python-user", "")),
        ("ruby-1", ("12345", "")),
        ("java-1", ("java-user", "java-anon")),
        ("dotnet-1", ("dotnet-user", "")),
        ("kotlin-1", ("", "kotlin-anon")),
        ("rn-1", ("rn-user", "rn-anon")),
    ],
)
def test_each_librarys_ids_are_read_and_its_nulls_and_empty_ones_are_absent(name: str, ids: tuple[str, str]) -> None:
    message = IMPORTED[name][0]

    assert (message.user_id, message.anonymous_id) == ids


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("ajs-next-1771885735111-862ff25a", ("writeKey", "_metadata")),
        ("python-1", ()),
        ("IOS-1", ("channel",)),
        ("SWIFT-1", ("_metadata",)),
        ("kotlin-1", ("writeKey", "_metadata")),
        ("batch-1", ("writeKey",)),
        ("personas_1gzZzz", ("channel", "version")),
    ],
)
def test_what_each_library_adds_at_the_top_is_named(name: str, ignored: tuple[str, ...]) -> None:
    assert IMPORTED[name][1].ignored == ignored


@pytest.mark.parametrize(
    ("name", "read", "value"),
    [
        ("ajs-next-1771885735111-862ff25a", lambda m: m.properties["revenue"], "29.95"),
        ("ajs-next-1771885735111-862ff25a", lambda m: m.context.campaign.extra["id"], "998"),
        ("ajs-next-1771885735111-862ff25a", lambda m: m.context.extra["userAgentData"]["platform"], "macOS"),
        (
            "ajs-next-1771885735111-862ff25a",
            lambda m: m.context.extra["consent"]["categoryPreferences"]["Analytics"],
            False,
        ),
        ("node-next-1771885735111-0f5dd6b6-01c4-43ae", lambda m: m.properties["ratio"], None),
        ("go-1", lambda m: m.context.device.ad_tracking_enabled, True),
        ("ruby-1", lambda m: m.HasField("integrations"), False),
        ("6a1f0c9e-php", lambda m: m.context.extra["library"]["consumer"], "LibCurl"),
        ("java-1", lambda m: m.traits["balance"], 1034.5),
        ("dotnet-1", lambda m: m.integrations["all"], True),
        ("IOS-1", lambda m: m.context.app.build, "42"),
        ("IOS-1", lambda m: m.context.location.latitude, 37.7),
        ("IOS-1", lambda m: m.context.location.HasField("speed"), True),
        ("SWIFT-1", lambda m: m.context.extra["instanceId"], "0B5A6E3C-0000"),
        ("android-1", lambda m: m.context.traits["userId"], "android-user"),
        ("android-1", lambda m: m.context.device.version, "12"),
        ("android-1", lambda m: m.context.device.ad_tracking_enabled, True),
        ("android-1", lambda m: m.context.os.version, "14"),
        ("android-1", lambda m: m.context.network.HasField("carrier"), True),
        ("kotlin-1", lambda m: m.context.app.build, "12"),
        ("rn-1", lambda m: m.context.device.HasField("advertising_id"), False),
        ("http-track", lambda m: m.event, "Item Purchased"),
        ("http-identify", lambda m: m.traits["industry"], "Technology"),
        ("batch-1", lambda m: m.context.device.type, "phone"),
        ("batch-1", lambda m: m.context.device.version, "110"),
        ("batch-1", lambda m: m.sent_at.ToJsonString(), "2012-12-02T00:30:15Z"),
        ("batch-2", lambda m: m.sent_at.ToJsonString(), "2012-12-02T00:31:00Z"),
        ("batch-2", lambda m: (m.integrations["All"], m.integrations["Pointillist"]), (True, False)),
        ("personas_1gzZzz", lambda m: m.traits["order_completed_last_30days"], True),
        ("personas_1gzZzz", lambda m: (m.integrations["All"], m.integrations["Pointillist"]), (False, True)),
        ("personas_1gzZzz", lambda m: m.integrations["Warehouses"]["all"], False),
        ("personas_1gzZzz", lambda m: m.context.extra["personas"]["computation_class"], "audience"),
        ("personas_1gzZzz", lambda m: m.original_timestamp.ToJsonString(), "2026-02-23T22:28:55.111222333Z"),
        ("personas_1gzZzz", lambda m: m.HasField("sent_at"), False),
    ],
)
def test_what_is_peculiar_to_a_library_finds_its_place(
    name: str, read: Callable[[Message], object], value: object
) -> None:
    assert read(IMPORTED[name][0]) == value
