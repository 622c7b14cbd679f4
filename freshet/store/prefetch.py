"""A hint to the processor, for the kernels: an element of an array will be read soon.

The lists and states of a large shop do not fit in a processor's caches, and which of them a batch reads is known
before they are read. Asking early lets the memory answer while other rows are worked on.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_READ, _KEEP, _DATA = 0, 3, 1
"""The last three arguments of llvm.prefetch: for reading, into the nearest cache, data and not code."""


@intrinsic  # type: ignore[misc]
def prefetch(typing_context: Any, array: Any, row: Any, column: Any) -> Any:
    """`prefetch(array, row, column)` fetches the cache line of that element; of a vector, `prefetch(array, place, 0)`
    fetches the one of `array[place]`.

    A hint: nothing is read, and an index outside the array does no harm (it is not wrapped around).
    """
    signature = types.void(array, types.intp, types.intp)

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        view = make_array(array)(context, builder, args[0])
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        place = list(args[1 : 1 + array.ndim])
        pointer = cgutils.get_item_pointer(context, builder, array, view, place, wraparound=False)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(hint, [builder.bitcast(pointer, byte), number(_READ), number(_KEEP), number(_DATA)])
        return context.get_dummy_value()

    return signature, generate
