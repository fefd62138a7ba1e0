/* autogaze_trt: gaze at video with an exported file, from C, C++ or any language that calls C.
 *
 * Load an engine, create a stream, push one frame after another, read ids and boxes. Nothing here throws: every call
 * returns a status, and autogaze_last_error() says in words what went wrong in the calling thread.
 * An engine may be shared by threads. A stream takes calls of one thread at a time: a call that finds another one in
 * the stream fails and changes nothing. Both are freed by their owner, in any order: a stream keeps what it needs of
 * its engine. The calling thread's current GPU is as it was when a call returns.
 */
#ifndef AUTOGAZE_TRT_H
#define AUTOGAZE_TRT_H

#include <stdint.h>

#ifdef _WIN32
#define AUTOGAZE_API __declspec(dllexport)
#else
#define AUTOGAZE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct autogaze_engine autogaze_engine;
typedef struct autogaze_stream autogaze_stream;

typedef enum autogaze_status {
  AUTOGAZE_OK = 0,
  AUTOGAZE_BAD_ARGUMENT = 1, /* a null pointer, a number out of range */
  AUTOGAZE_BAD_FILE = 2,     /* not there, cut short, not ours, of a newer format, for another GPU */
  AUTOGAZE_NO_BACKEND = 3,   /* this library was built without the runtime that the file needs */
  AUTOGAZE_RUNTIME = 4       /* CUDA, TensorRT or ONNX Runtime failed */
} autogaze_status;

typedef struct autogaze_info {
  int32_t patches_per_frame; /* ids are 0 to this - 1, coarse to fine */
  int32_t budget;            /* most ids a frame may spend */
  int32_t scales;            /* how many */
  int32_t tile_px;           /* side of the square that boxes are in, pixels */
  int32_t input_height;      /* of a frame that goes in, pixels */
  int32_t input_width;
  int32_t input_is_uint8; /* 1: RGB uint8 (H, W, 3); 0: preprocessed float32 (3, H, W) */
  int32_t smallest_batch;
  int32_t largest_batch;
  float gazing_ratio;          /* default: largest share of a frame's patches */
  float task_loss_requirement; /* default: loss at which a frame may stop; -infinity: never */
} autogaze_info;

/* What is asked of the next frame of one sample. */
typedef struct autogaze_request {
  int32_t budget;              /* ids it may spend, 0 to autogaze_info.budget */
  float task_loss_requirement; /* stop once the predicted loss is at most this; -infinity never stops */
} autogaze_request;

/* Where a sample looked; the pointers are good until the stream's next push, reset or free. */
typedef struct autogaze_gaze {
  int32_t count;          /* ids chosen */
  const int64_t* ids;     /* (count) in the order chosen */
  const float* boxes;     /* (count, 4) left, top, right, bottom in pixels of the tile */
  const float* task_loss; /* (count) loss predicted before each id was taken */
} autogaze_gaze;

typedef enum autogaze_place { AUTOGAZE_HOST = 0, AUTOGAZE_DEVICE = 1 } autogaze_place;

/* The gaze of all samples where it was computed: nothing is copied and nothing waited for. The pointers are good until
 * the stream's next push, reset or free; what reads them must come after the push in its CUDA stream. */
typedef struct autogaze_batch_gaze {
  int32_t place; /* an autogaze_place: device memory with TensorRT, host memory with ONNX Runtime */
  int32_t batch;
  int32_t budget;
  const int64_t* ids;     /* (batch, budget) in the order chosen, 0 where `chosen` is 0 */
  const uint8_t* chosen;  /* (batch, budget) 1: a real choice; others may stand between */
  const float* task_loss; /* (batch, budget) NaN where nothing was decoded */
  const int32_t* count;   /* (batch) ids chosen */
} autogaze_batch_gaze;

typedef enum autogaze_severity {
  AUTOGAZE_LOG_ERROR = 1,
  AUTOGAZE_LOG_WARNING = 2,
  AUTOGAZE_LOG_INFO = 3
} autogaze_severity;

/* A line of the runtime's log; may come from any thread, and must not call this library. */
typedef void (*autogaze_log)(void* user, int32_t severity, const char* message);

/* How to open a file. Set `size` to sizeof(autogaze_options) and what you need; zeros are the defaults. */
typedef struct autogaze_options {
  uint64_t size;
  int32_t device;            /* GPU 0, 1, ...; ignored on a CPU */
  int32_t threads;           /* of a CPU; 0: the runtime's own choice */
  const char* runtime_cache; /* TensorRT for RTX: file of compiled kernels, read and written; null: none */
  autogaze_log log;          /* null: nobody listens */
  void* log_user;            /* handed to `log` */
} autogaze_options;

/* This library's version, such as "1.1.0". */
AUTOGAZE_API const char* autogaze_version(void);

/* Words for the last failure in this thread; never null. */
AUTOGAZE_API const char* autogaze_last_error(void);

/* Open an exported frame file (.engine, .plan, .trt or .onnx) on a GPU (device 0, 1, ...; ignored on a CPU). */
AUTOGAZE_API autogaze_status autogaze_engine_load(const char* path, int32_t device, autogaze_engine** engine);
AUTOGAZE_API autogaze_status autogaze_engine_open(const char* path, const autogaze_options* options,
                                                  autogaze_engine** engine);
AUTOGAZE_API void autogaze_engine_free(autogaze_engine* engine);
AUTOGAZE_API autogaze_status autogaze_engine_info(const autogaze_engine* engine, autogaze_info* info);
/* A value of the file's metadata, such as "autogaze.scales"; null if there is none. Good as long as the engine is. */
AUTOGAZE_API const char* autogaze_engine_property(const autogaze_engine* engine, const char* key);
/* Pixel box (left, top, right, bottom) of an id. */
AUTOGAZE_API autogaze_status autogaze_engine_box(const autogaze_engine* engine, int64_t id, float box[4]);

/* A stream of `batch` samples side by side, all work in `cuda_stream` (a cudaStream_t; null: the default stream). */
AUTOGAZE_API autogaze_status autogaze_stream_create(autogaze_engine* engine, int32_t batch, void* cuda_stream,
                                                    autogaze_stream** stream);
AUTOGAZE_API void autogaze_stream_free(autogaze_stream* stream);
/* Forget everything: the next frame opens a new clip. */
AUTOGAZE_API autogaze_status autogaze_stream_reset(autogaze_stream* stream);
/* The same for one sample of the batch; the others go on. */
AUTOGAZE_API autogaze_status autogaze_stream_reset_sample(autogaze_stream* stream, int32_t sample);
/* Push one frame of every sample, contiguous, where `place` (an autogaze_place) says; `requests` has one entry a
 * sample, or is null for the file's defaults. Returns once the work is in the CUDA stream: pinned or device memory must
 * stay as it is until the gaze was read, pageable memory may be reused at once. */
AUTOGAZE_API autogaze_status autogaze_stream_push(autogaze_stream* stream, const void* frames, int32_t place,
                                                  const autogaze_request* requests);
/* The gaze of one sample of the last push; waits for it. */
AUTOGAZE_API autogaze_status autogaze_stream_gaze(autogaze_stream* stream, int32_t sample, autogaze_gaze* gaze);
/* The gaze of all samples of the last push, where it lies. */
AUTOGAZE_API autogaze_status autogaze_stream_gaze_in_place(autogaze_stream* stream, autogaze_batch_gaze* gaze);

#ifdef __cplusplus
}
#endif
#endif
