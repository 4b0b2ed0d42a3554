"""The contract's names for the manifest's reason words: the one table."""

# Reasons of a request that fails, and of its report lines; several where the contract tells causes apart.
ERRORS: dict[str, set[str]] = {
    "archive_limits": {"ARCHIVE_TOO_LARGE"},
    "bad_param": {"FIELD_REQUIRED", "FIELD_OUT_OF_RANGE", "FIELD_NOT_ALLOWED"},
    "download_failed": {"DOWNLOAD_REFUSED", "DOWNLOAD_FAILED"},
    "download_truncated": {"DOWNLOAD_TRUNCATED"},
    "encrypted": {"ARCHIVE_ENCRYPTED"},
    "image_entry": {"IMAGE_NOT_ALLOWED"},
    "no_video_stream": {"NO_USABLE_CLIPS"},
    "no_videos": {"NO_VIDEOS"},
    "not_a_zip": {"ARCHIVE_UNREADABLE"},
    "ssrf_blocked": {"URL_NOT_ALLOWED", "DOWNLOAD_REFUSED"},
    "undecodable": {"NO_USABLE_CLIPS"},
    "unsafe_path": {"ARCHIVE_PATH_UNSAFE"},
    "unsupported_archive": {"ARCHIVE_UNSUPPORTED"},
    "unsupported_container": {"NO_VIDEOS"},
}
LINES: dict[str, set[str]] = {
    "audio_undecodable": {"AUDIO_UNDECODABLE"},
    "duplicate_entry": {"DUPLICATE_PATH"},
    "image_entry": {"IMAGE_NOT_ALLOWED"},
    "no_video_stream": {"NO_VIDEO_TRACK"},
    "undecodable": {"UNDECODABLE"},
    "unsafe_path": {"UNSAFE_PATH"},
    "unsupported_container": {"IGNORED_FILE"},
}
# Decided by Preprocess, which knows the job's parameters: for Ingest these clips are as good as others.
NOT_OURS = {"audio_missing", "too_short", "validation_too_short"}
PREPROCESS_ERRORS: dict[str, set[str]] = {
    "audio_missing": {"AUDIO_TRACK_MISSING"},
    "too_short": {"ALL_CLIPS_TOO_SHORT"},
    "validation_too_short": {"VALIDATION_CLIP_TOO_SHORT"},
}
PREPROCESS_LINES: dict[str, set[str]] = {
    "audio_missing": {"AUDIO_TRACK_MISSING"},
    "too_short": {"CLIP_TOO_SHORT"},
    "validation_too_short": {"VALIDATION_CLIP_TOO_SHORT"},
}
