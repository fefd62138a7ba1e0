/* The C header is C: it compiles without C++. */
#include "autogaze_trt.h"

int autogaze_header_is_c(void) { return (int)sizeof(autogaze_info) > 0 ? AUTOGAZE_OK : AUTOGAZE_RUNTIME; }
