"""Devices turn costs into times; measuring gives a device of the same kind; records give it back."""

import json
from dataclasses import replace

import pytest
import torch

from minitransformer.roofline import (
    DEVICES,
    Cost,
    Device,
    NoisyMachine,
    dtype_bytes,
    dtype_name,
    load_record,
    load_records,
    measure,
    measure_device,
    recorded_device,
)
from minitransformer.roofline.records import device_fields

CHIP = Device("chip", {"bf16": 100.0, "fp8": 200.0}, bandwidth=10.0, memory_bytes=1000.0, price_per_hour=2.0)


def test_time_is_the_longer_of_arithmetic_and_traffic():
    assert CHIP.time(Cost(flops=400, bytes=10)) == 4.0
    assert CHIP.time(Cost(flops=400, bytes=100)) == 10.0
    assert CHIP.time(Cost(flops=400, bytes=10), "fp8") == 2.0


def test_the_ridge_parts_memory_bound_from_compute_bound():
    assert CHIP.ridge() == 10 and CHIP.ridge("fp8") == 20
    assert CHIP.bound(Cost(11, 1)) == "compute"
    assert CHIP.bound(Cost(9, 1)) == "memory"
    assert CHIP.bound(Cost(11, 1), "fp8") == "memory"
    assert CHIP.compute_time(Cost(10, 1)) == CHIP.memory_time(Cost(10, 1))


def test_the_roofline_rises_to_the_ridge_and_stays_flat():
    assert CHIP.flops_at(5) == 50 and CHIP.flops_at(10) == 100 and CHIP.flops_at(1000) == 100


def test_a_group_of_devices_multiplies_limits_and_keeps_the_ridge():
    four = 4 * CHIP
    assert four.time(Cost(400, 100)) == CHIP.time(Cost(400, 100)) / 4
    assert (four.memory_bytes, four.price_per_hour, four.name) == (4000, 8, "4x chip")
    assert four.ridge() == CHIP.ridge()
    assert (1 * CHIP) == CHIP


def test_formats_by_name_and_by_torch_dtype_are_the_same():
    assert dtype_name(torch.bfloat16) == dtype_name("bfloat16") == dtype_name("bf16") == "bf16"
    assert dtype_name(torch.float8_e4m3fn) == "fp8"
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn):
        assert dtype_bytes(dtype) == torch.empty(1, dtype=dtype).element_size()
    assert dtype_bytes("int4") == 0.5
    assert CHIP.peak(torch.bfloat16) == CHIP.peak("bf16")
    assert Device("other", {torch.float32: 1.0}, 1.0, 1.0).default_dtype == "fp32"


def test_published_limits_are_dense_and_cite_their_source():
    assert {"A100", "H100", "H200", "B200", "L4", "T4", "RTX 4090", "MI300X", "TPU v5e"} <= set(DEVICES)
    for device in DEVICES.values():
        assert device.source
        peaks = device.peak_flops
        if "fp8" in peaks:  # dense and sparse figures mixed would show as a ratio of 4
            assert peaks["fp8"] / peaks["bf16"] == pytest.approx(2, rel=0.01)
    assert DEVICES["H100"].peak("bf16") == pytest.approx(989.4e12)  # 1,979 is the figure with sparsity
    sram = DEVICES["Groq LPU"]
    assert sram.memory_bytes < 1e9 and sram.bandwidth >= 10 * DEVICES["B200"].bandwidth


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: CHIP.time(Cost(1, 1), "int8"), "chip has no peak for int8, only for bf16, fp8"),
        (lambda: DEVICES["T4"].peak("bf16"), "T4 has no peak for bf16"),
        (lambda: DEVICES["H100"].ridge("int4"), "no peak for int4"),
        (lambda: Device("odd", {"bf16": -1.0}, 1.0, 1.0), "must all be above zero"),
        (lambda: Device("odd", {}, 1.0, 1.0), "must all be above zero"),
        (lambda: 0 * CHIP, "at least one device"),
        (lambda: measure_device("meta"), "can measure cpu and cuda, not meta"),
    ],
)
def test_bad_input_is_refused_in_words(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.fixture
def small_measurement(monkeypatch):
    monkeypatch.setitem(measure.SIZES, "cpu", (32, 64))
    monkeypatch.setitem(measure.BUFFER_BYTES, "cpu", 2**16)


@pytest.mark.filterwarnings("ignore::minitransformer.roofline.NoisyMachine")
def test_measuring_gives_a_device_with_every_limit(small_measurement):
    device = measure_device("cpu", dtypes=[torch.float32, "bf16"], seconds=0.05)
    assert list(device.peak_flops) == ["fp32", "bf16"]
    assert min(*device.peak_flops.values(), device.bandwidth, device.copy_bandwidth) > 0
    assert 0 < device.launch_overhead < 1
    assert set(device.spread) == {"fp32", "bf16", "read", "copy"}
    assert device.memory_bytes > 2**27 and "thread" in device.name
    assert device.time(Cost(1e9, 1e6)) > 0


@pytest.mark.filterwarnings("ignore::minitransformer.roofline.NoisyMachine")
def test_a_format_that_cannot_be_multiplied_is_left_out(small_measurement):
    assert list(measure_device("cpu", dtypes=["fp32", "int4", "tf32"], seconds=0.05).peak_flops) == ["fp32"]


def test_a_busy_machine_is_called_busy():
    with pytest.warns(NoisyMachine, match="read by 50%"):
        measure._warn_if_noisy({"fp32": 0.02, "read": 0.5})


def test_rates_are_those_of_fast_runs_and_spread_tells_how_far_the_median_lay():
    times = [1.0] * 20 + [1.5] * 30 + [9.0] * 10
    assert measure.fast(times) == 1.0
    assert measure.spread(times) == 0.5
    assert measure.fast([3.0]) == 3.0 and measure.spread([3.0]) == 0


def record_of(name: str, date: str, kind: str = "cuda") -> dict:
    limits = device_fields(replace(CHIP, name=name))
    rest = {"command": "c", "versions": {}, "items": {}, "failed": {}, "limits": limits}
    return {"kind": kind, "device": name, "date": date, **rest}


def test_records_are_found_by_name_and_by_date(tmp_path):
    for file, record in {
        "h.json": record_of("NVIDIA H200", "2026-01-02"),
        "l.json": record_of("NVIDIA L4", "2026-02-01"),
        "cpu.json": record_of("some CPU", "2027-01-01", kind="cpu"),
    }.items():
        (tmp_path / file).write_text(json.dumps(record))
    assert set(load_records(tmp_path)) == {"NVIDIA H200", "NVIDIA L4"}
    assert load_record(folder=tmp_path)["device"] == "NVIDIA L4"
    assert load_record("h200", tmp_path)["date"] == "2026-01-02"
    assert recorded_device(load_record("h200", tmp_path)) == replace(CHIP, name="NVIDIA H200")


def test_no_record_is_none_and_a_broken_one_is_an_error(tmp_path):
    assert load_record(folder=tmp_path) is None
    assert load_record(folder=tmp_path / "missing") is None
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_record(folder=tmp_path)
    (tmp_path / "x.json").write_text('{"device": "x"}')
    with pytest.raises(ValueError, match="lacks command"):
        load_record(folder=tmp_path)


def test_the_shipped_records_can_be_read():
    for record in load_records().values():
        assert recorded_device(record).ridge() > 0
