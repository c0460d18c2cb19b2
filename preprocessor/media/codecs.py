"""FFmpeg's names of the decoders that may run.

FFmpeg 8.1 has about 400, most of them for files that nobody has made in twenty years, and an untrusted file chooses which one
runs. Every further decoder is more C code that untrusted data reaches, so all others are refused as `UNSUPPORTED_CODEC`. Left
out on purpose are lossless and intermediate codecs of editors (FFV1, HuffYUV, Ut Video, CineForm, raw video), whose files are
too large to send, and codecs of game and screen recorders that players do not read either. A codec with several decoders is
listed by all names under which builds of FFmpeg or PyAV know it.
"""

VIDEO_DECODERS = frozenset(
    {
        *("h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d"),
        *("mpeg1video", "mpeg2video", "mpeg4", "h263", "mjpeg"),
        *("prores", "dnxhd"),  # as cameras and editors write them
        *("flv", "theora", "vc1", "wmv3"),  # of the flv, ogg and asf containers
        *("gif", "apng"),
        # what archives, cameras and the web of the years before 2010 hold
        *("msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "h261", "dvvideo"),
        *("cinepak", "qtrle", "svq1", "svq3", "vp6", "vp6a", "vp6f", "flashsv", "flashsv2"),
    }
)

SOUND_DECODERS = frozenset(
    {
        *("aac", "mp3", "mp3float", "mp2", "mp2float", "opus", "libopus", "vorbis", "libvorbis", "flac", "alac"),
        *("ac3", "eac3", "amrnb", "amrwb", "wavpack", "wmav1", "wmav2"),
        *("adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt"),
        *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be"),
        *("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw"),
    }
)

ALLOWED_DECODERS = VIDEO_DECODERS | SOUND_DECODERS
"""Those that may run while a file is opened: FFmpeg may look into other streams, too."""
