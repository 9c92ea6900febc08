"""InferenceSession: load, optimize, partition, compile; then run and explain."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, cast

import onnx

from gpurt import caches, logs, registry
from gpurt.autodiff import differentiate
from gpurt.errors import InvalidArgument
from gpurt.layout import LEVEL as LAYOUT
from gpurt.layout import NAME as CHANNELS_LAST
from gpurt.layout import channels_last
from gpurt.loader import Parsed, Views
from gpurt.optimizer import optimize
from gpurt.optimizer.settle import settle
from gpurt.options import SessionOptions
from gpurt.partitioner import Assigner, Compiler, Decisions, Settings
from gpurt.plan.cache import PlanCache
from gpurt.plan.destination import LEAVE, Destination, Target
from gpurt.plan.values import Held, Run
from gpurt.provider import HOST
from gpurt.run_options import RunOptions
from gpurt.session.binding import IOBinding
from gpurt.session.collecting import uncollected
from gpurt.session.dry_run import NotCompiled, check_shapes, predict
from gpurt.session.explain import Explanation, explain
from gpurt.session.feeds import check_feeds, check_mapping, open_sizes
from gpurt.session.lanes import parallel
from gpurt.session.offline import write
from gpurt.session.opening import asked, check_strict, open_providers, set_threads, with_settings
from gpurt.session.profiling import Profile
from gpurt.session.residence import Residence, check_apart
from gpurt.session.results import owned, positions, result, root
from gpurt.session.running import fitted, running
from gpurt.session.signature import Signature
from gpurt.session.site import Evaluator, Site
from gpurt.session.warmup import Shapes, listed, zeros
from gpurt.session.workers import Workers

logger = logs.get(__name__)


class InferenceSession(Signature):
    """A model, ready to run.

    Args:
        path_or_bytes: a file, the bytes of one, or an onnx.ModelProto.
        sess_options: see SessionOptions.
        providers: in priority order: ``"name"``, ``"name:index"`` or ``(either, {options})``. The host provider ``cpu``
            is appended unless it is listed or ``strict`` is set. Default: cuda, opencl, cpu, as far as usable.
        provider_options: a dictionary for each provider, as ONNX Runtime takes them.
        dry_run: only decide: explain() then tells placement, predicted copies, times and memory; run() is an error.
        expected_shapes: name -> shape of inputs that placement and predictions reckon with where the model leaves
            dimensions open; without it a batch is 1, an image 224 x 224 and everything else 64.

    Raises:
        NoSuchFile, InvalidProtobuf, InvalidGraph: the model cannot be loaded.
        InvalidArgument: an unknown provider or option.
        ProviderError: under ``strict``, a provider in the list cannot be used.
        NotImplemented: a node that no provider in the list can run.
    """

    binding: ClassVar[type[IOBinding]] = IOBinding

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes | onnx.ModelProto,
        sess_options: SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        dry_run: bool = False,
        expected_shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        options = sess_options if sess_options is not None else SessionOptions()
        if not isinstance(options, SessionOptions):
            raise InvalidArgument(f"sess_options is {options!r}", remedy="Give a gpurt.SessionOptions")
        self._options = options
        self._scope = logs.Scope(options.log_severity_level, options.log_verbosity_level, options.logid)
        self._executor = f"{'Parallel' if options.execution_mode else 'Sequential'}Executor::Execute"
        self._profile = Profile() if options.enable_profiling else None
        self._workers = Workers()
        with logs.scope(self._scope), uncollected():
            shapes = {} if expected_shapes is None else expected_shapes
            self._create(path_or_bytes, options, providers, provider_options, dry_run, shapes)

    def _create(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes | onnx.ModelProto,
        options: SessionOptions,
        providers: Sequence[Any] | None,
        provider_options: Sequence[Mapping[str, Any]] | None,
        dry_run: bool,
        expected_shapes: Mapping[str, Sequence[int]],
    ) -> None:
        set_threads(options.intra_op_num_threads)
        times = {"start": time.perf_counter()}
        requests = registry.parse(asked(providers), provider_options)
        parsed = Parsed(path_or_bytes)
        times["load"] = time.perf_counter()
        requests = [with_settings(r, options) for r in requests]
        self._providers = open_providers(requests, asked=providers is not None, strict=options.strict)
        times["providers"] = time.perf_counter()
        loaded = parsed.canonical()  # by now the weights have been read
        differentiate(loaded.model, loaded.names)
        check_shapes(expected_shapes, loaded.inputs)
        times["convert"] = time.perf_counter()
        host = next(p for p in self._providers if p.memory_space == HOST)
        evaluator = Evaluator(host)
        self._decisions = Decisions()
        names, disabled = loaded.names, options.disabled_optimizers
        report = optimize(
            loaded.model, options.graph_optimization_level, evaluator, names,
            disabled=disabled, extra=options.transformers, providers=self._providers,
        )  # fmt: skip
        removed = report.removed
        if options.optimized_model_filepath:
            write(loaded, options.optimized_model_filepath)
        times["optimize"] = time.perf_counter()
        appended = options.strict and host.name not in {r.name for r in requests}
        settings = Settings(
            options.partitioning,
            options.pins,
            expected_shapes,
            caches.folder(options.cache_dir),
            self._providers.index(host) if appended else None,
        )
        owners, groups = Assigner(loaded.model, self._providers, names, self._decisions, settings).assign()
        if options.graph_optimization_level:
            removed += settle(loaded.model, evaluator, names, disabled)
        self._decisions.removed = [asdict(r) for r in removed]
        self._decisions.applied = [{**asdict(a), "kind": str(a.kind), "level": int(a.level)} for a in report.applied]
        self._decisions.misses = [{"rule": m.rule, "node": m.node, "reason": m.reason} for m in report.misses]
        if appended:
            check_strict(loaded.model, owners, self._providers.index(host), self._decisions)
        times["partition"] = time.perf_counter()
        if options.graph_optimization_level >= LAYOUT and CHANNELS_LAST not in disabled:
            channels_last(loaded.model, self._providers, owners, groups, names, expected_shapes, self._decisions)
        times["layout"] = time.perf_counter()
        self._inputs, self._outputs, self._overridable = loaded.inputs, loaded.outputs, loaded.overridable
        self._defaults = {v.name: v.const_value for v in loaded.model.graph.inputs if v.const_value is not None}
        self._metadata = loaded.metadata
        self._dry: Explanation | None = None
        if dry_run:
            self._dry = predict(loaded.model, self._providers, owners, groups, self._decisions, settings)
            self._site, self._residence = cast("Site", NotCompiled()), cast("Residence", NotCompiled())
            return
        compiler = Compiler(self._providers, owners, groups, self._decisions)
        self._compiled = compiler.compile(Views().graph(loaded.model.graph))
        times["compile"] = time.perf_counter()
        plans = PlanCache(options.plan_cache_size, options.plan_cache_bytes)
        # A fresh evaluator: the one for folding remembers nodes, and with them weights, that are gone.
        lanes = partial(parallel, options, self._providers, folder=settings.folder)
        self._site = Site(self._providers, compiler, Evaluator(host), plans, lanes)
        self._runner = self._site.runner(self._compiled)
        self._residence = Residence(self._site)
        self._fixed = frozenset(id(root(a)) for a in self._compiled.constants.values())
        marks = list(times.items())
        phases = ", ".join(f"{b[0]} {1e3 * (b[1] - a[1]):.1f} ms" for a, b in pairwise(marks))
        logger.info("session created: %s", phases)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", self.explain().headline())
        if self._profile is not None:
            self._profile.created(marks, from_file=isinstance(path_or_bytes, (str, os.PathLike)))
            weakref.finalize(self, self._profile.close_late, options.profile_file_prefix)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: RunOptions | None = None,
    ) -> list[Any]:
        """Run the model and wait for the results.

        Args:
            output_names: which outputs, in which order; None for all.
            input_feed: name -> value: NumPy arrays, gpurt.Tensors, arrays of CuPy, torch and all others that speak
                DLPack, PyOpenCL's arrays, what NumPy makes arrays of; lists for sequences. What lies on a device of the
                session is used in place; what lies on another comes through the host, as explain() says.
            run_options: see RunOptions.

        Returns:
            For each output a NumPy array that the caller owns, a list (sequence), a list of dictionaries (map) or None
            (absent optional).

        Raises:
            InvalidArgument: a feed or an output name does not fit the model; says what was expected.
            RuntimeException: a kernel failed; names the node.
            Terminated: RunOptions.terminate was set.
        """
        wanted = positions(output_names, self._outputs)
        feeds = check_feeds(input_feed, self._inputs, self._overridable)

        def attempt() -> list[Any]:
            with running(self._site, self._scope, self._profile, run_options) as run:
                return owned(self._values(run, feeds, wanted), feeds.values(), self._fixed)

        return fitted(self._site, partial(open_sizes, feeds, self._inputs), attempt)

    def _values(self, run: Run, feeds: Mapping[str, Any], wanted: Sequence[int]) -> list[Any]:
        """Outputs on the host; when this returns nobody knows of device memory of the run any more."""
        with run.span("Session", self._executor, {}):
            held = self._runner.run(run, self._env(feeds, run))
            return [held[i].on_host(run) for i in wanted]

    def tunings(self) -> dict[str, Any]:
        """Device -> what is known and was measured about its kernels' parameters, a gpurt.device.tuning.Tuning.

        Devices whose providers have nothing to tune are not there.
        """
        found = {p.device: getattr(p, "tuning", None) for p in self._providers}
        return {device: tuning for device, tuning in found.items() if tuning is not None}

    def io_binding(self) -> IOBinding:
        """A new IOBinding: where runs find their inputs and leave their outputs."""
        return self.binding(self._inputs, self._outputs, self._residence, self._site)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        """Run with the inputs of a binding; the outputs that it names are left where it says.

        Raises InvalidArgument if memory that is bound does not fit, before anything runs as far as shapes are known by
        then; else as run.
        """
        if not isinstance(iobinding, IOBinding) or not iobinding.of(self._residence):
            raise InvalidArgument("the binding is not of this session", remedy="Use session.io_binding()")
        feeds = check_feeds(iobinding.inputs, self._inputs, self._overridable)
        iobinding.results = []

        def attempt() -> dict[str, Any]:
            with running(self._site, self._scope, self._profile, run_options) as run:
                return self._bound(run, feeds, iobinding)

        results = fitted(self._site, partial(open_sizes, feeds, self._inputs), attempt)
        mine = [w.tensor.numpy() for w in iobinding.outputs.values() if w.tensor is not None and not w.tensor.storage]
        foreign = [*feeds.values(), *mine]
        for name, wanted in iobinding.outputs.items():
            iobinding.results.append(result(results[name], wanted.tensor, foreign, self._fixed))

    def _bound(self, run: Run, feeds: Mapping[str, Any], iobinding: IOBinding) -> dict[str, Any]:
        """Outputs of a binding, by name, where it wants them."""
        env = self._env(feeds, run)
        bound = {
            name: self._residence.destination(wanted.space, wanted.tensor, env)
            for name, wanted in iobinding.outputs.items()
        }
        check_apart(bound.items())
        destinations = {o.name: bound.get(o.name) or Destination(Target(LEAVE)) for o in self._outputs}
        with run.span("Session", self._executor, {}):
            held = self._runner.run(run, env, destinations)
            by_name = dict(zip((o.name for o in self._outputs), held, strict=True))
            return self._residence.complete_all(by_name, bound, run)

    def run_with_ort_values(
        self,
        output_names: Sequence[str] | None,
        input_dict_ort_values: Mapping[str, Any],
        run_options: RunOptions | None = None,
        *,
        device: str = "cpu",
    ) -> list[Any]:
        """Run with Tensors in and Tensors out: as run, with all outputs on one device of the session."""
        binding = self.io_binding()
        check_mapping(input_dict_ort_values, self._inputs)
        for name, value in input_dict_ort_values.items():
            binding.bind_ortvalue_input(name, value)
        names = [self._outputs[i].name for i in positions(output_names, self._outputs)]
        for name in names:
            binding.bind_output(name, device)
        self.run_with_iobinding(binding, run_options)
        found = dict(zip(binding.outputs, binding.results, strict=True))
        return [found[name] for name in names]

    def _env(self, feeds: Mapping[str, Any], run: Run) -> dict[str, Held]:
        """The model's inputs as a run holds them."""
        env: dict[str, Held] = {}
        for info in self._inputs:
            if info.name in feeds:
                env[info.name] = self._residence.held(info, feeds[info.name], run)
            elif info.name in self._defaults:
                default = self._defaults[info.name]
                assert default is not None, "only values with content are kept as defaults"
                env[info.name] = Held(default.numpy())
            else:
                env[info.name] = Held(None)
        run.fed.extend(env.values())
        return env

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], None],
        user_data: Any = None,
        run_options: RunOptions | None = None,
    ) -> None:
        """Run the model on a worker thread, and call ``callback(results, user_data, error)`` there.

        The arguments are those of run; arrays must stay untouched until the callback. ``error`` is "" and the results
        are those of run, or it is the message of what run raised, and the results are [].
        """
        if not callable(callback):
            raise InvalidArgument(f"callback is {callback!r}", remedy="Give callback(results, user_data, error)")
        self._workers.submit(lambda: self.run(output_names, input_feed, run_options), callback, user_data)

    def warmup(self, shapes: Shapes | Sequence[Shapes]) -> list[float]:
        """Make the plans and build the kernels for shapes before data comes, by running the model on zeros.

        Args:
            shapes: input name -> shape, or a list of such mappings. In place of a shape there may be an array, which is
                needed where an input's content decides shapes. Inputs with fixed shapes may be left out.

        Returns:
            Seconds for each mapping.

        Raises InvalidArgument for unknown inputs and missing shapes, and what run raises.
        """
        times = []
        for entry in listed(shapes):
            feeds = zeros(entry, self._inputs, self._overridable)
            start = time.perf_counter()
            self.run(None, feeds)
            times.append(time.perf_counter() - start)
        if len(times) > self._options.plan_cache_size:
            logger.warning(
                "%d shapes were warmed up, plan_cache_size keeps %d", len(times), self._options.plan_cache_size
            )
        return times

    def end_profiling(self) -> str:
        """Write the profile and return its file's name; "" if SessionOptions.enable_profiling was not set."""
        profile, self._profile = self._profile, None
        if profile is None:
            logger.warning("end_profiling: the session has no profile; set SessionOptions.enable_profiling")
            return ""
        return profile.close(self._options.profile_file_prefix)

    def get_profiling_start_time_ns(self) -> int:
        """When the profile began, in nanoseconds since 1970; 0 if there is none."""
        return 0 if self._profile is None else self._profile.start_time_ns

    def get_providers(self) -> list[str]:
        """Names of the providers in use, in priority order."""
        return list(dict.fromkeys(p.name for p in self._providers))

    def get_devices(self) -> list[str]:
        """Devices in use, in priority order: ``opencl:0``, ``cpu``."""
        return [p.device for p in self._providers]

    def explain(self) -> Explanation:
        """Who runs each node and who refused it why, every copy and cast; bytes are known once a shape was seen."""
        if self._dry is not None:
            return self._dry
        seen = [*self._site.copies.values(), *self._residence.copies.values()]
        return explain(self._compiled, self._providers, self._decisions, seen, self._site.replaced())

    def memory(self) -> dict[str, dict[str, int]]:
        """Use of device memory, by device (``"opencl:0"``), in bytes but for the last.

        ``planned_peak`` and ``lower_bound`` are of the last run that ended: what its plans reserved at most at once,
        and the largest sum of values alive at one step of the same order, each rounded up to the arena's alignment.
        Workspaces and the bodies of control flow are in both, weights and memory of the caller's in neither. ``held``
        is what the arena has from the device, ``in_use`` the part of it that plans kept for further runs have,
        ``weights`` the constants that stay on the device, ``streamed`` those that the last run copied there in passing
        (see over_budget), ``limit`` the memory_limit (0: none), ``allocations_last_run`` how many blocks the last run
        took from the arena.
        """
        return self._site.memory()

    def trim(self) -> int:
        """Give memory that no run needs now back to the devices, and to the host; returns the bytes freed.

        Plans stay known; the next run takes memory for them again.
        """
        return self._site.trim()
