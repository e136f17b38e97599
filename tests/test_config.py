"""Settings: checked when made, laid over each other one by one, and never telling a secret."""

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamactors.config import (
    KNOWN,
    Autoscale,
    Checkpoints,
    Config,
    ExponentialDelay,
    FailureRate,
    FixedDelay,
    Heap,
    Local,
    Ray,
    Restart,
    Setting,
    require_supported,
    resolve,
    unsupported,
)
from streamactors.errors import InvalidConfig
from streamactors.settings import redacted

SECOND = dt.timedelta(seconds=1)
URI = "file:///var/lib/orders"


def checkpoints(**settings: object) -> Checkpoints:
    return Checkpoints(**{"storage": URI, "interval": SECOND, **settings})  # type: ignore[arg-type]


def heap(**settings: Any) -> Heap:
    return Heap(**settings)


def config(**settings: object) -> Config:
    return Config(**settings)  # type: ignore[arg-type]


def origins(settings: list[Setting]) -> dict[str, str]:
    return {setting.name: setting.origin for setting in settings if setting.origin != "default"}


class TestValues:
    def test_equal_by_value(self) -> None:
        assert Config(parallelism=2, checkpoints=checkpoints()) == Config(parallelism=2, checkpoints=checkpoints())
        assert Config() != Config(parallelism=2)
        assert Restart.fixed(SECOND, 3) == Restart.fixed(SECOND, 3) != Restart.fixed(SECOND, 4)
        assert Heap() == Heap()
        assert Local() == Local()

    def test_frozen(self) -> None:
        for made, name in ((Config(), "parallelism"), (checkpoints(), "retain"), (Restart.none(), "delay")):
            with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
                setattr(made, name, 7)

    def test_restart_is_exponential_under_checkpoints_and_none_without(self) -> None:
        assert Config().effective_restart == Restart.none()
        assert Config(checkpoints=checkpoints()).effective_restart == Restart.exponential()
        assert Config(restart=Restart.fixed(SECOND, 1)).effective_restart == Restart.fixed(SECOND, 1)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: config(parallelism=0), "parallelism = 0: .*at least 1"),
            (lambda: config(parallelism="4"), "parallelism = '4': .*whole number"),
            (lambda: config(parallelism=True), "parallelism = True: .*whole number"),
            (lambda: config(mailbox_capacity=0), "mailbox_capacity = 0: .*at least 1"),
            (lambda: config(max_parallelism=2, parallelism=3), r"max_parallelism = 2: .*at least parallelism \(3\)"),
            (lambda: config(max_parallelism=40000), "max_parallelism = 40000: .*at most 32768"),
            (lambda: config(sort_memory=0), "sort_memory = 0: .*at least 1024; bytes"),
            (lambda: config(sort_folder=""), "sort_folder = '': .*a folder on a local disk"),
            (lambda: config(execution="fast"), "execution = 'fast': .*'streaming', 'batch', 'auto'"),
            (lambda: config(state_backend="disk"), "state_backend = 'disk': .*'heap', 'rocksdb'"),
            (lambda: config(state_backend=Heap), r"state_backend = .*instance such as RocksDB\(\)"),
            (lambda: heap(incremental="yes"), "Heap.incremental = 'yes': .*True or False"),
            (lambda: heap(full_every=0), "Heap.full_every = 0: .*at least 1; checkpoints"),
            (lambda: config(deployment="local"), r"deployment = 'local': .*instance such as Local\(\)"),
            (lambda: config(checkpoints=URI), "checkpoints = .*must be Checkpoints"),
            (lambda: config(restart="fixed"), "restart = 'fixed': .*Restart.fixed"),
            (lambda: config(restart=Restart()), "restart = .*Restart.fixed"),
            (lambda: checkpoints(storage=" "), "checkpoints.storage = ' ': .*URI such as"),
            (lambda: checkpoints(storage=None), "checkpoints.storage = None: .*URI such as"),
            (lambda: checkpoints(interval=10), "checkpoints.interval = 10: .*datetime.timedelta"),
            (lambda: checkpoints(interval=0 * SECOND), "checkpoints.interval = 0s: .*longer than zero"),
            (lambda: checkpoints(interval=-SECOND), "checkpoints.interval = -1s: .*longer than zero"),
            (lambda: checkpoints(timeout=0 * SECOND), "checkpoints.timeout = 0s"),
            (lambda: checkpoints(min_pause=-SECOND), "checkpoints.min_pause = -1s: .*negative"),
            (lambda: checkpoints(alignment_timeout=-SECOND), "checkpoints.alignment_timeout = -1s"),
            (lambda: checkpoints(mode="exactly_once"), "checkpoints.mode = 'exactly_once': .*'exactly-once'"),
            (lambda: checkpoints(alignment="none"), "checkpoints.alignment = 'none'"),
            (
                lambda: checkpoints(mode="at-least-once", alignment="unaligned"),
                "checkpoints.alignment = 'unaligned': with mode = 'at-least-once' nothing waits .* leave it out",
            ),
            (
                lambda: checkpoints(mode="at-least-once", alignment_timeout=SECOND),
                "checkpoints.alignment_timeout = 1s: with mode = 'at-least-once' nothing waits",
            ),
            (
                lambda: checkpoints(alignment="unaligned", alignment_timeout=SECOND),
                "checkpoints.alignment_timeout = 1s: with alignment = 'unaligned' barriers overtake at once",
            ),
            (lambda: checkpoints(max_concurrent=0), "checkpoints.max_concurrent = 0"),
            (lambda: checkpoints(tolerable_failures=-1), "checkpoints.tolerable_failures = -1: .*at least 0"),
            (lambda: checkpoints(retain=0), "checkpoints.retain = 0: .*at least 1"),
            (lambda: checkpoints(incremental="yes"), "checkpoints.incremental = 'yes': .*True or False"),
            (lambda: Restart.fixed(-SECOND, 1), "restart.delay = -1s"),
            (lambda: Restart.fixed(SECOND, 0), r"restart.attempts = 0: .*Restart.none\(\)"),
            (lambda: Restart.exponential(0 * SECOND), "restart.initial = 0s"),
            (lambda: Restart.exponential(9 * SECOND, SECOND), r"restart.maximum = 1s: .*restart.initial \(9s\)"),
            (lambda: Restart.exponential(jitter=1.5), "restart.jitter = 1.5: .*from 0 to 1"),
            (lambda: Restart.exponential(jitter=float("nan")), "restart.jitter = nan"),
            (lambda: Restart.failure_rate(0, SECOND, SECOND), "restart.failures = 0"),
            (lambda: Restart.failure_rate(1, 0 * SECOND, SECOND), "restart.per = 0s"),
        ],
    )
    def test_refused_by_name_value_and_remedy(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(InvalidConfig, match=message):
            make()


class TestSecrets:
    STORAGE = "s3://KEY:SECRET@bucket/path?token=SECRET&region=eu"

    def test_repr_and_str_hide_them(self) -> None:
        made = Config(checkpoints=checkpoints(storage=self.STORAGE))
        for text in (repr(made), str(made), repr(made.checkpoints)):
            assert "SECRET" not in text
            assert "bucket/path" in text

    def test_errors_hide_them(self) -> None:
        with pytest.raises(InvalidConfig) as refused:
            config(checkpoints=self.STORAGE)
        assert "SECRET" not in str(refused.value)

    def test_settings_hide_them(self, tmp_path: Path) -> None:
        (tmp_path / "job.toml").write_text('[checkpoints]\nstorage = "s3://x/${env:SECRET_PATH}"\ninterval = "1s"\n')
        resolved, settings = resolve(toml=tmp_path / "job.toml", environ={"SECRET_PATH": "SECRET"})
        assert resolved.checkpoints == checkpoints(storage="s3://x/SECRET")
        assert "'s3://x/${env:SECRET_PATH}'" in [setting.value for setting in settings]
        for environ in ({}, {"STREAMACTORS_CHECKPOINTS__STORAGE": self.STORAGE}):
            _, settings = resolve(Config(checkpoints=checkpoints(storage=self.STORAGE)), environ=environ)
            assert "SECRET" not in repr(settings)

    def test_a_substituted_value_that_is_refused_is_not_shown(self, tmp_path: Path) -> None:
        (tmp_path / "job.toml").write_text('parallelism = "${env:P}"')
        with pytest.raises(InvalidConfig, match=r"parallelism = '\$\{env:P\}' \(from .*job.toml\)") as refused:
            resolve(toml=tmp_path / "job.toml", environ={"P": "SECRET"})
        assert "SECRET" not in str(refused.value)
        assert refused.value.__suppress_context__

    @pytest.mark.parametrize("uri", ["file:///var/lib/a@b", "/plain/path?x=1", "s3://bucket/key", "C:\\folder", ""])
    def test_what_has_none_stays_as_it_is(self, uri: str) -> None:
        assert redacted(uri) == uri


class TestToml:
    def load(self, tmp_path: Path, text: str) -> Config:
        (tmp_path / "job.toml").write_text(text)
        return Config.from_toml(str(tmp_path / "job.toml"))

    def test_everything(self, tmp_path: Path) -> None:
        loaded = self.load(
            tmp_path,
            """
            parallelism = 4
            max_parallelism = 256
            mailbox_capacity = 1_000
            execution = "streaming"
            state_backend = "heap"
            deployment = "local"
            [checkpoints]
            storage = "file:///var/lib/orders"
            interval = "10s"
            mode = "at-least-once"
            timeout = "5m"
            min_pause = "500ms"
            max_concurrent = 2
            tolerable_failures = 1
            retain = 5
            incremental = false
            [restart]
            strategy = "failure-rate"
            failures = 3
            per = "1h"
            delay = "1s"
            """,
        )
        assert loaded == Config(
            parallelism=4,
            max_parallelism=256,
            mailbox_capacity=1000,
            deployment=Local(),
            checkpoints=Checkpoints(
                URI,
                interval=10 * SECOND,
                mode="at-least-once",
                timeout=dt.timedelta(minutes=5),
                min_pause=dt.timedelta(milliseconds=500),
                max_concurrent=2,
                tolerable_failures=1,
                retain=5,
                incremental=False,
            ),
            restart=Restart.failure_rate(3, dt.timedelta(hours=1), SECOND),
        )

    def test_empty_file_is_the_default(self, tmp_path: Path) -> None:
        assert self.load(tmp_path, "") == Config()

    @pytest.mark.parametrize(
        ("strategy", "restart"),
        [
            ('"none"', Restart.none()),
            ('"fixed"\ndelay = "2s"\nattempts = 3', Restart.fixed(2 * SECOND, 3)),
            ('"exponential"\njitter = 0.5', Restart.exponential(jitter=0.5)),
            ('"failure_rate"\ndelay = "2s"\nfailures = 3\nper = "9s"', Restart.failure_rate(3, 9 * SECOND, 2 * SECOND)),
        ],
    )
    def test_restart_strategies(self, tmp_path: Path, strategy: str, restart: Restart) -> None:
        assert self.load(tmp_path, f"[restart]\nstrategy = {strategy}\n").restart == restart

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("paralelism = 2", "unknown setting 'paralelism' .*job.toml.*did you mean 'parallelism'"),
            ("[checkpoint]\nstorage = 'x'", "unknown setting 'checkpoint.storage'.*'checkpoints.storage'"),
            ("interval = '10s'", "unknown setting 'interval'.*did you mean 'checkpoints.interval'"),
            ("zzz = 1", "unknown setting 'zzz'.*there are: parallelism"),
            ("parallelism = 2.5", "parallelism = 2.5 .*whole number"),
            ("parallelism = [1]", r"parallelism = \[1\] .*whole number"),
            ("checkpoints = 'file:///x'", "unknown setting 'checkpoints'"),
            ("[checkpoints]\nstorage = 'x'\ninterval = 10", "checkpoints.interval = 10 .*'?duration with its unit"),
            ("[checkpoints]\nstorage = 'x'", "checkpoints.interval is missing beside checkpoints.storage"),
            ("[checkpoints]\ninterval = '1s'", "checkpoints.storage is missing beside checkpoints.interval"),
            ("[checkpoints]\nstorage = 'x'\ninterval = '1s'\nincremental = 'maybe'", "incremental = 'maybe'.*true or"),
            ("[restart]\ndelay = '1s'", "restart.strategy is missing"),
            ("[restart]\nstrategy = 'fixed'\nattempts = 1", "restart.delay is missing beside restart.attempts"),
            ("[restart]\nstrategy = 'fixed'\nper = '1s'", "restart.per = 1s: the strategy 'fixed' has no such.*delay"),
            ("[restart]\nstrategy = 'sometimes'", "restart.strategy = 'sometimes' .*'failure-rate'"),
            ("parallelism = ", "job.toml' is not TOML"),
            ('execution = "${env:NOT_SET_ANYWHERE}"', "execution in .*job.toml .*'NOT_SET_ANYWHERE', which is not set"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(InvalidConfig, match=message):
            self.load(tmp_path, text)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match=r"gone\.toml' can't be read: No such file"):
            Config.from_toml(str(tmp_path / "gone.toml"))

    def test_environment_variables_in_values(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ROOT", "/data")
        monkeypatch.setenv("WIDTH", "3")
        text = (
            'parallelism = "${env:WIDTH}"\n[checkpoints]\nstorage = "file://${env:ROOT}/x${env:WIDTH}"\ninterval="1s"'
        )
        assert self.load(tmp_path, text) == Config(parallelism=3, checkpoints=checkpoints(storage="file:///data/x3"))


class TestLayers:
    def test_flags_over_environment_over_file_over_module_over_defaults(self, tmp_path: Path) -> None:
        toml = tmp_path / "job.toml"
        toml.write_text("parallelism = 3\nmailbox_capacity = 3\nmax_parallelism = 300\n")
        module = Config(parallelism=2, mailbox_capacity=2, max_parallelism=200, restart=Restart.fixed(SECOND, 2))
        environ = {"STREAMACTORS_PARALLELISM": "4", "STREAMACTORS_MAILBOX_CAPACITY": "4", "PATH": "/bin"}
        resolved, settings = resolve(module, toml, environ, {"parallelism": "5"})
        assert resolved == dataclasses.replace(module, parallelism=5, mailbox_capacity=4, max_parallelism=300)
        assert origins(settings) == {
            "parallelism": "flag parallelism",
            "mailbox_capacity": "STREAMACTORS_MAILBOX_CAPACITY",
            "max_parallelism": str(toml),
            "restart.strategy": "module",
            "restart.delay": "module",
            "restart.attempts": "module",
        }

    def test_nothing_given_is_the_default(self) -> None:
        resolved, settings = resolve()
        assert resolved == Config()
        assert {setting.origin for setting in settings} == {"default"}
        assert Setting("restart.strategy", "'none'", "default") in settings
        assert Setting("mailbox_capacity", "4096", "default") in settings

    def test_environment_changes_one_setting_of_checkpoints_given_in_code(self) -> None:
        module = Config(checkpoints=checkpoints(retain=7))
        resolved, settings = resolve(module, environ={"STREAMACTORS_CHECKPOINTS__INTERVAL": "30s"})
        assert resolved.checkpoints == checkpoints(retain=7, interval=30 * SECOND)
        assert origins(settings) == {
            "checkpoints.storage": "module",
            "checkpoints.interval": "STREAMACTORS_CHECKPOINTS__INTERVAL",
            "checkpoints.retain": "module",
        }

    def test_checkpoints_from_several_places(self, tmp_path: Path) -> None:
        (tmp_path / "job.toml").write_text('[checkpoints]\nstorage = "file:///var/lib/orders"')
        flags = {"checkpoints.min-pause": "2s"}
        environ = {"STREAMACTORS_CHECKPOINTS__INTERVAL": "1s"}
        resolved, _ = resolve(toml=tmp_path / "job.toml", environ=environ, flags=flags)
        assert resolved.checkpoints == checkpoints(min_pause=2 * SECOND)

    def test_setting_of_the_same_strategy_is_amended(self) -> None:
        resolved, _ = resolve(Config(restart=Restart.fixed(SECOND, 2)), environ={"STREAMACTORS_RESTART__ATTEMPTS": "9"})
        assert resolved.restart == Restart.fixed(SECOND, 9)

    def test_another_strategy_drops_the_settings_of_the_one_below(self) -> None:
        module = Config(restart=Restart.failure_rate(1, SECOND, SECOND))
        resolved, _ = resolve(module, environ={"STREAMACTORS_RESTART__STRATEGY": "none"})
        assert resolved.restart == Restart.none()

    def test_instances_of_the_module_pass_through(self) -> None:
        heap, local = Heap(), Local()
        resolved, _ = resolve(Config(state_backend=heap, deployment=local), flags={"parallelism": "2"})
        assert resolved.state_backend is heap
        assert resolved.deployment is local

    def test_unknown_names_are_refused(self) -> None:
        with pytest.raises(InvalidConfig, match="'paralelism' .from STREAMACTORS_PARALELISM.*'parallelism'"):
            resolve(environ={"STREAMACTORS_PARALELISM": "2"})
        with pytest.raises(InvalidConfig, match="'retain' .from flag retain.*'checkpoints.retain'"):
            resolve(flags={"retain": "2"})

    def test_errors_say_who_gave_the_value(self) -> None:
        with pytest.raises(InvalidConfig, match="parallelism = 0: .* .from STREAMACTORS_PARALLELISM."):
            resolve(environ={"STREAMACTORS_PARALLELISM": "0"})
        with pytest.raises(InvalidConfig, match="parallelism = 'x' .from flag parallelism.: .*whole number"):
            resolve(flags={"parallelism": "x"})
        with pytest.raises(InvalidConfig, match="parallelism = '' .from STREAMACTORS_PARALLELISM"):
            resolve(environ={"STREAMACTORS_PARALLELISM": ""})

    def test_what_kubernetes_sets_for_a_service_of_that_name_is_no_setting(self) -> None:
        environ = {
            "STREAMACTORS_SERVICE_HOST": "10.0.0.1",
            "STREAMACTORS_SERVICE_PORT": "80",
            "STREAMACTORS_SERVICE_PORT_HTTP": "80",
            "STREAMACTORS_PORT": "tcp://10.0.0.1:80",
            "STREAMACTORS_PORT_80_TCP": "tcp://10.0.0.1:80",
            "STREAMACTORS_PORT_80_TCP_ADDR": "10.0.0.1",
        }
        assert resolve(environ=environ)[0] == Config()

    def test_every_setting_has_its_text_form(self) -> None:
        classes = {"": Config, "checkpoints.": Checkpoints, "autoscale.": Autoscale}
        names = {prefix + field.name for prefix, made in classes.items() for field in dataclasses.fields(made)}
        strategies = (FixedDelay, ExponentialDelay, FailureRate)
        names |= {f"restart.{field.name}" for made in strategies for field in dataclasses.fields(made)}
        names |= {f"ray.{field.name}" for field in dataclasses.fields(Ray)}
        tables = {"checkpoints", "restart", "autoscale", "checkpoints.storage_options", "ray.resources"}
        assert (names - tables) | {"restart.strategy"} == set(KNOWN)

    def test_storage_options_come_from_everywhere_and_are_never_shown(self, tmp_path: Path) -> None:
        toml = tmp_path / "job.toml"
        toml.write_text(
            "[checkpoints.storage_options]\nanon = false\n"
            'secret = "${env:SECRET}"\nclient_kwargs.region_name = "eu-1"\n'
        )
        options = {"key": "hidden-1", "client_kwargs": {"verify": "hidden-2"}}
        module = Config(checkpoints=Checkpoints("s3://b/x", interval=SECOND, storage_options=options))
        environ = {"STREAMACTORS_CHECKPOINTS__STORAGE_OPTIONS__ENDPOINT_URL": "https://hidden-3", "SECRET": "hidden-4"}
        flags = {"checkpoints.storage_options.use_ssl": "FALSE"}
        config, settings = resolve(module, toml, environ, flags)
        assert config.checkpoints is not None
        assert config.checkpoints.storage_options == {
            "key": "hidden-1",
            "secret": "hidden-4",
            "client_kwargs": {"verify": "hidden-2", "region_name": "eu-1"},
            "anon": False,
            "endpoint_url": "https://hidden-3",
            "use_ssl": False,
        }
        assert options == {"key": "hidden-1", "client_kwargs": {"verify": "hidden-2"}}
        shown = f"{module!r} {config!r} {settings}"
        assert "'secret': ***" in shown and "hidden" not in shown and "eu-1" not in shown

    def test_storage_options_are_a_table(self) -> None:
        with pytest.raises(InvalidConfig, match="checkpoints.storage_options: it must be a dict") as caught:
            Checkpoints("s3://b/x", interval=SECOND, storage_options="hidden")  # type: ignore[arg-type]
        assert "hidden" not in str(caught.value)

    @given(st.data())
    def test_any_config_survives_the_way_through_text(self, data: st.DataObject) -> None:
        made = data.draw(CONFIGS)
        _, settings = resolve(made)
        environ = as_environment(settings)
        assert resolve(environ=environ)[0] == dataclasses.replace(made, restart=made.effective_restart)


class TestRay:
    def test_from_toml(self, tmp_path: Path) -> None:
        (tmp_path / "job.toml").write_text(
            'deployment = "ray"\n[ray]\nworkers = 4\naddress = "10.0.0.1:6379"\npatience = "2m"\n'
            'strategy = "pack"\nslots = 2\nresources = { CPU = 2, GPU = 0.5, fast_disk = 1 }'
        )
        expected = Ray(
            workers=4,
            address="10.0.0.1:6379",
            resources={"CPU": 2.0, "GPU": 0.5, "fast_disk": 1.0},
            patience=dt.timedelta(minutes=2),
            strategy="pack",
            slots=2,
        )
        assert Config.from_toml(tmp_path / "job.toml").deployment == expected

    def test_a_worker_takes_one_cpu_unless_told_otherwise(self) -> None:
        assert Ray(workers=2).each == {"CPU": 1.0}
        assert Ray(workers=2, resources={"cpu": 0, "slots": 1}).each == {"CPU": 0.0, "slots": 1.0}

    def test_environment_changes_one_setting_of_what_the_module_gives(self) -> None:
        module = Config(deployment=Ray(workers=4, address="auto", resources={"slots": 1}))
        environ = {"STREAMACTORS_RAY__WORKERS": "8", "STREAMACTORS_RAY__RESOURCES__CPU": "2"}
        resolved, settings = resolve(module, environ=environ)
        assert resolved.deployment == Ray(workers=8, address="auto", resources={"slots": 1, "CPU": 2})
        assert origins(settings) == {
            "deployment": "module",
            "ray.workers": "STREAMACTORS_RAY__WORKERS",
            "ray.address": "module",
            "ray.resources.slots": "module",
            "ray.resources.cpu": "STREAMACTORS_RAY__RESOURCES__CPU",
        }
        assert Setting("ray.workers", "'8'", "STREAMACTORS_RAY__WORKERS") in settings

    def test_another_deployment_drops_the_settings_of_the_one_below(self) -> None:
        module = Config(deployment=Ray(workers=4))
        assert resolve(module, environ={"STREAMACTORS_DEPLOYMENT": "local"})[0].deployment == Local()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"deployment": "ray"}, r"ray\.workers is missing beside ray: it must be a whole number"),
            ({"ray.workers": "2"}, r"ray\.workers = '2': it goes with deployment = 'ray' \(from flag"),
            ({"deployment": "ray", "ray.workers": "0"}, r"ray\.workers = 0: .*at least 1"),
            ({"deployment": "ray", "ray.workers": "1", "ray.address": " "}, r"ray\.address = ' ': .*'auto'"),
            (
                {"deployment": "ray", "ray.workers": "1", "ray.worker": "1"},
                "unknown setting 'ray.worker'.*'ray.workers'",
            ),
            (
                {"deployment": "ray", "ray.workers": "1", "ray.resources.CPU": "x"},
                r"ray\.resources\.CPU = 'x'.*a number",
            ),
            (
                {"deployment": "ray", "ray.workers": "1", "ray.resources.CPU": "-1"},
                r"ray\.resources\.CPU = -1.0.*at least",
            ),
            ({"deployment": "ray", "ray.workers": "1", "ray.strategy": "fill"}, "ray.strategy = 'fill'.*'pack'"),
            ({"deployment": "ray", "ray.workers": "1", "ray.slots": "0"}, r"ray\.slots = 0.*at least 1"),
            ({"deployment": "ray", "ray.workers": "1", "ray.patience": "0s"}, r"ray\.patience = 0s.*longer than zero"),
        ],
    )
    def test_refused(self, given: dict[str, str], message: str) -> None:
        with pytest.raises(InvalidConfig, match=message):
            resolve(flags=given)

    def test_an_address_is_shown_without_its_password(self) -> None:
        made = Config(deployment=Ray(workers=1, address="ray://user:hidden@host:10001"))
        assert "***@host" in repr(made) and "hidden" not in f"{made!r} {resolve(made)}"


def as_environment(settings: list[Setting]) -> Mapping[str, str]:
    given = {setting.name: setting.value.strip("'") for setting in settings if setting.value != "None"}
    return {"STREAMACTORS_" + name.upper().replace(".", "__"): value for name, value in given.items()}


DURATIONS = st.timedeltas(dt.timedelta(microseconds=1), dt.timedelta(days=900))
COUNTS = st.integers(1, 1000)
RESTARTS = st.one_of(
    st.just(Restart.none()),
    st.builds(Restart.fixed, DURATIONS, COUNTS),
    st.builds(lambda a, b, j, r: Restart.exponential(min(a, b), max(a, b), jitter=j, reset_after=r),
              DURATIONS, DURATIONS, st.floats(0, 1), DURATIONS),
    st.builds(Restart.failure_rate, COUNTS, DURATIONS, DURATIONS),
)  # fmt: skip
PROTOCOLS = st.one_of(
    st.sampled_from([{}, {"mode": "at-least-once"}, {"alignment": "unaligned"}]),
    st.fixed_dictionaries({"alignment_timeout": DURATIONS}),
)
CONFIGS = st.builds(
    Config,
    parallelism=COUNTS,
    max_parallelism=st.none() | st.integers(1000, 32768),
    mailbox_capacity=COUNTS,
    checkpoints=st.none()
    | st.builds(
        lambda protocol, **given: Checkpoints(URI, **protocol, **given),
        PROTOCOLS,
        interval=DURATIONS,
        min_pause=DURATIONS,
        retain=COUNTS,
        incremental=st.booleans(),
    ),
    restart=st.none() | RESTARTS,
    autoscale=st.none()
    | st.builds(
        Autoscale,
        target=st.floats(0.3, 0.6),
        tolerance=st.floats(0.1, 0.2),
        max_parallelism=st.none() | COUNTS,
        steps=st.none() | st.lists(st.text("abc-.", min_size=1), min_size=1),
        window=DURATIONS,
        cooldown=DURATIONS,
        max_factor=st.floats(1.5, 10),
        dry_run=st.just(True),
    ),
)


class TestAutoscale:
    def test_from_toml(self, tmp_path: Path) -> None:
        (tmp_path / "job.toml").write_text(
            '[autoscale]\ntarget = 0.6\nsteps = ["totals", "calls"]\ncooldown = "3m"\ndry_run = true\n'
        )
        expected = Autoscale(target=0.6, steps=("totals", "calls"), cooldown=dt.timedelta(minutes=3), dry_run=True)
        assert Config.from_toml(tmp_path / "job.toml").autoscale == expected

    def test_any_setting_turns_it_on(self) -> None:
        assert Config().autoscale is None
        environ = {"STREAMACTORS_AUTOSCALE__DRY_RUN": "true", "STREAMACTORS_AUTOSCALE__STEPS": "totals, calls"}
        assert resolve(environ=environ)[0].autoscale == Autoscale(dry_run=True, steps=["totals", "calls"])

    def test_what_the_module_gives_is_kept_also_where_it_is_the_default(self) -> None:
        module = Config(checkpoints=checkpoints(), autoscale=Autoscale())
        assert resolve(module)[0].autoscale == Autoscale()
        assert resolve(module, flags={"autoscale.target": "0.5"})[0].autoscale == Autoscale(target=0.5)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"target": 1.5}, r"autoscale.target = 1.5: it must be a number from 0 to 1"),
            ({"target": 0.9}, r"autoscale.tolerance = 0.2: it must leave room on both sides of autoscale.target"),
            ({"tolerance": 0.0}, r"autoscale.tolerance = 0.0"),
            ({"min_parallelism": 4, "max_parallelism": 2}, r"autoscale.max_parallelism = 2: .* at least 4"),
            ({"steps": "totals"}, r"autoscale.steps = 'totals': it must be a list"),
            ({"steps": []}, r"autoscale.steps"),
            ({"window": dt.timedelta(0)}, r"autoscale.window"),
            ({"cooldown": -SECOND}, r"autoscale.cooldown"),
            ({"max_factor": 1}, r"autoscale.max_factor = 1: it must be a number above 1"),
            ({"dry_run": "no"}, r"autoscale.dry_run"),
        ],
    )
    def test_refused(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidConfig, match=message):
            Autoscale(**given)

    def test_it_needs_checkpoints(self) -> None:
        with pytest.raises(InvalidConfig, match="checkpoint, and these are off"):
            Config(autoscale=Autoscale())
        assert Config(autoscale=Autoscale(dry_run=True)).autoscale is not None


class TestSupport:
    @pytest.mark.parametrize(
        "protocol", [{"mode": "at-least-once"}, {"alignment": "unaligned"}, {"alignment_timeout": SECOND}]
    )
    def test_every_barrier_protocol_is_there(self, protocol: dict[str, Any]) -> None:
        settings = checkpoints(**protocol, max_concurrent=3, tolerable_failures=2, min_pause=SECOND, timeout=SECOND)
        for made in (Config(), Config(checkpoints=settings, state_backend=Heap(), deployment=Local())):
            assert unsupported(made) == []
            require_supported(made)

    @pytest.mark.parametrize("execution", ["streaming", "batch", "auto"])
    def test_every_execution_is_there(self, execution: Any) -> None:
        made = Config(execution=execution, sort_memory=1 << 20, sort_folder="/var/tmp")
        assert unsupported(made) == []

    def test_a_backend_or_deployment_of_somebody_else_is_refused(self) -> None:
        class Elsewhere:
            name = "elsewhere"

        found = unsupported(Config(state_backend=Elsewhere(), deployment=Elsewhere()))
        assert [problem.partition(" = ")[0] for problem in found] == ["state_backend", "deployment"]

    def test_all_problems_are_named_at_once(self) -> None:
        class Elsewhere:
            name = "elsewhere"

        made = Config(deployment=Elsewhere(), state_backend=Elsewhere())
        with pytest.raises(InvalidConfig, match="state_backend.*; .*deployment"):
            require_supported(made)
