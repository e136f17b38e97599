"""The orders job of the recovery tests, on two workers of a Ray cluster: its address and the settings are given."""

import dataclasses
import datetime as dt
import sys

import msgspec

import streamactors as sa
from tests.deploy.ray_cuts import watch
from tests.recovery.jobs import Settings, Totals, config_of, flow_of

WORKERS = 2
RESTARTS = 1000


class CutOff(Totals):
    """Totals in a process that can be cut off."""

    def open(self, ctx: sa.OperatorContext, /) -> None:
        watch()
        super().open(ctx)


def on_ray(settings: Settings, address: str) -> sa.Config:
    return dataclasses.replace(
        config_of(settings),
        restart=sa.Restart.fixed(dt.timedelta(0), RESTARTS),
        deployment=sa.Ray(workers=WORKERS, address=address),
    )


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[2], type=Settings)
    sa.main(flow_of(given, CutOff), on_ray(given, sys.argv[1]))
