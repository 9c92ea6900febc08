"""The device layer on the embedded OpenCL device, in both kernel classes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpurt.device.provider import DeviceProvider
from gpurt.provider import Unavailable


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def provider(request: pytest.FixtureRequest) -> Iterator[DeviceProvider]:
    """An OpenCL provider whose kernels are of one class; a module's tests share it, and with it the built programs."""
    try:
        from gpurt_opencl import OpenCLProvider

        opened = OpenCLProvider.open(None, {"kernel_class": request.param})
    except (ImportError, Unavailable) as e:
        pytest.skip(f"no OpenCL device: {e}")
    yield opened
    opened.close()
