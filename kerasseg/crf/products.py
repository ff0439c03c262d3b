"""Products of sparse and dense matrices in TensorFlow's compressed form."""

import functools
import os

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.framework import op_def_library, ops

_ONEDNN = "_MklNativeSparseMatrixMatMul"
_PLAIN = dict.fromkeys(("transpose_a", "transpose_b", "adjoint_a", "adjoint_b", "transpose_output", "conjugate_output"), False)


def sparse_matrix(rows, columns, values, shape):
    """Makes a matrix in compressed form.

    Args:
        rows: Row of each value, ascending, int32.
        columns: Column of each value, of the same shape.
        values: As many, float32.
        shape: Number of rows and columns, integers or scalar tensors.
    Returns:
        Tensor of one variant; `product` and `transposed` take it.
    """
    rows, columns = (tf.cast(tf.reshape(each, [-1]), tf.int64) for each in (rows, columns))
    # Two halves of one integer are side by side at once; stacked, they are moved one by one.
    both = tf.bitcast(tf.bitwise.bitwise_or(rows, tf.bitwise.left_shift(columns, 32)), tf.int32)
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.cast(both, tf.int64), values=tf.reshape(values, [-1]), dense_shape=tf.cast(tf.stack(shape), tf.int64)
    )


def transposed(matrix):
    """The transpose of a sparse matrix."""
    return tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)


def product(matrix, values):
    """Multiplies a sparse matrix by a dense one.

    Args:
        matrix: Of `(M, N)`, from `sparse_matrix`.
        values: Shape `(N, C)`, float32.
    Returns:
        Shape `(M, C)`, float32.
    """
    if tf.executing_eagerly() or not _onednn_multiplies():
        return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=values)
    return _onednn_product(matrix, values)


def _onednn_product(matrix, values):
    """What TensorFlow puts in place of the operation by itself where it runs eagerly, but not in graphs: four times as fast."""
    # Made ones of this graph first: what brings them here from an outer one must not get the label.
    matrix, values = tf.identity(matrix), tf.identity(values)
    label = attr_value_pb2.AttrValue(s=b"MklNameChangeOp")
    with ops.get_default_graph()._attr_scope({"_kernel": label}):
        result = op_def_library.apply_op(_ONEDNN, a=matrix, b=values, name="SparseMatrixMatMul", **_PLAIN)
    # The operation itself says nothing of shapes.
    return tf.ensure_shape(result, [None, values.shape[-1]])


@functools.cache
def _onednn_multiplies() -> bool:
    """Whether oneDNN's kernel is there, wanted, and right; a GPU has one of its own."""
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" or tf.config.list_logical_devices("GPU"):
        return False

    @tf.function(autograph=False)
    def attempt():
        return _onednn_product(sparse_matrix([0, 2], [1, 0], [3.0, 5.0], (3, 2)), tf.constant([[1.0, 2.0], [3.0, 4.0]]))

    try:
        with tf.init_scope():
            return bool(np.array_equal(attempt().numpy(), [[9.0, 12.0], [0.0, 0.0], [5.0, 10.0]]))
    except (tf.errors.OpError, ValueError, TypeError, RuntimeError, AttributeError):
        return False
