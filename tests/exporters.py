"""The trained models of ../shared/models, one or more from each exporter; tests skip where the folder is missing."""

EXPORTED = (
    "basic_pitch_tf2onnx",
    "cifar10_resnet20_dynamo",
    "cifar10_resnet20_ts",
    "cifar10_resnet32_dynamo_ext",
    "cifar10_resnet32_ts_bn_op10",
    "cifar10_resnet56_ts",
    "cifar10_resnet8_qdq_tf2onnx",
    "cifar10_resnet8_tf2onnx",
    "meshnet3d_t1_ts",
    "mnist_cntk",
    "ppocr_v2_det_paddle",
    "silero_vad_spox",
    "squeezenet_fp16_caffe2",
    "subpixel_sr_pt12",
    "ultraface_rfb640_pt13",
)
# The same exporter and the same blocks as cifar10_resnet20_ts, three times as many of them.
LONG = "cifar10_resnet56_ts"
NEGATIVE = ("negative/neg_custom_domain_decodeimage", "negative/neg_opset1_constant_weights_cntk")
"""Valid models that plain ONNX Runtime cannot run."""
