"""Image captions on COCO, or on any files of its layout."""
