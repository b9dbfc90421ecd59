"""Drives the registry with py-eureka-client: registers, renews, fetches, is overridden, stops. Asserts each.

Usage: eureka_client.py http://HOST:PORT
"""

import asyncio
import json
import sys
import time
import urllib.error
import urllib.request

from py_eureka_client import eureka_client

BASE = sys.argv[1].rstrip("/")
GROUP = "shop-v001"
INSTANCE = "i-0123"
ENTRY_ID = "127.0.0.1:shop:9090"
WAIT_SECS = 15  # many heartbeats of one second each


def call(method, path, body=None):
    """Status and text of a call that the client under test has no part in."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data=data, method=method, headers={"Accept": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def entry():
    """The entry as the registry shows it; None when there is none."""
    status, text = call("GET", f"/eureka/apps/SHOP/{ENTRY_ID}")
    assert status in (200, 404), (status, text)
    return json.loads(text)["instance"] if status == 200 else None


def step(number, kind, **of):
    """Has the registry carry out a step of a plan, as the control plane does."""
    intent = {
        "id": f"{number:032x}", "account": "local", "region": "r1", "at": "2026-11-24T10:00:00Z",
        "step": {"step": kind, "group": GROUP, **of}, "cause": {"cause": "upkeep", "reason": "a test"},
    }
    status, text = call("POST", "/troop/v1/steps", intent)
    assert status == 200 and json.loads(text)["outcome"] == "done", (status, text)


async def until(what, holds):
    """Waits until `holds()`, with a limit."""
    limit = time.monotonic() + WAIT_SECS
    while not holds():
        assert time.monotonic() < limit, f"in {WAIT_SECS} s it never came to be that {what}"
        await asyncio.sleep(0.1)
    print("ok:", what, flush=True)


def ended(beats):
    """Whether the entry has not been renewed for two seconds, which is two beats and half a lease."""
    now = time.monotonic()
    renewed = entry()["leaseInfo"]["lastRenewalTimestamp"]
    beats[:] = [(at, when) for at, when in beats if when == renewed] + [(now, renewed)]
    return now - beats[0][0] >= 2


def client():
    return eureka_client.EurekaClient(
        eureka_server=BASE + "/eureka/", app_name="shop", instance_host="127.0.0.1", instance_ip="127.0.0.1",
        instance_port=9090, renewal_interval_in_secs=1, duration_in_secs=4,
        metadata={"troop.instance-id": INSTANCE}, on_error=lambda kind, error: errors.append((kind, error)))


errors = []


async def main():
    shop = client()
    await shop.start()
    await until("it is registered and UP", lambda: entry() is not None and entry()["status"] == "UP")
    lease = entry()["leaseInfo"]
    assert lease["durationInSecs"] == 4, lease
    assert entry()["metadata"]["troop.instance-id"] == INSTANCE, entry()

    def seen(by):
        found = by.applications.get_application("SHOP").get_instance(ENTRY_ID)
        return found.status if found else None

    assert seen(shop) == "UP", seen(shop)
    print("ok: it fetched itself over XML")

    began = lease["lastRenewalTimestamp"]
    await until("it renewed for longer than its lease",
                lambda: entry()["leaseInfo"]["lastRenewalTimestamp"] >= began + 5_000)
    assert entry()["leaseInfo"]["registrationTimestamp"] == lease["registrationTimestamp"], "it had to register again"
    assert not errors, errors

    # The client has no parameter for the group, so it is put where the client keeps what it registers.
    shop._EurekaClient__instance["asgName"] = GROUP
    await shop.register()
    assert entry()["asgName"] == GROUP, entry()
    step(1, "override_group", out_of_service=True)
    assert entry()["status"] == "OUT_OF_SERVICE" and entry()["overriddenstatus"] == "OUT_OF_SERVICE", entry()
    await until("it learnt from the delta that its group is out of service", lambda: seen(shop) == "OUT_OF_SERVICE")
    await shop.register()
    assert entry()["status"] == "OUT_OF_SERVICE", "a registration must not end the override"
    step(2, "override_group", out_of_service=False)
    await until("it learnt that its group is back", lambda: seen(shop) == "UP")

    await shop.status_update("OUT_OF_SERVICE")
    assert entry()["status"] == "OUT_OF_SERVICE", entry()
    await shop.delete_status_override()
    assert entry()["status"] == "UP", entry()
    print("ok: it overrode itself and dropped that")

    # The client's heartbeat thread outlives `stop` and would register again; after one more beat it sleeps for an hour.
    shop._EurekaClient__heartbeat_interval = 3_600
    beats = []
    await until("its heartbeats ended", lambda: ended(beats))
    await shop.stop()
    assert entry() is None, entry()
    delta = json.loads(call("GET", "/eureka/apps/delta")[1])["applications"]
    actions = [i["actionType"] for a in delta["application"] for i in a["instance"]]
    assert actions == ["DELETED"] and delta["apps__hashcode"] == "", delta
    print("ok: it stopped")

    # What a dying process still sends must not bring back an instance that a step has cancelled.
    await shop.register()
    assert entry()["status"] == "UP", entry()
    step(3, "cancel_entry", instance=INSTANCE)
    assert entry() is None, entry()
    assert not errors, errors
    await shop.send_heartbeat()
    # It reports that neither its heartbeat nor its registration was taken, but not with which status.
    assert [kind for kind, _ in errors] == ["EUREKA_ERROR_STATUS_UPDATE", "EUREKA_ERROR_REGISTER"], errors
    status, text = call("POST", "/eureka/apps/SHOP", {"instance": shop._EurekaClient__instance})
    assert status == 409 and INSTANCE in text, (status, text)
    assert entry() is None, entry()
    print("ok: it cannot come back after its instance was cancelled")
    print("all as expected", flush=True)


asyncio.run(main())
