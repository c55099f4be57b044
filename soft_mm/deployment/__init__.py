"""Networks of mmpretrain, mmdet and mmseg as ONNX files: what is exported, and what runs the files."""
