# autogaze_find(NAME header version_header libraries) sets NAME_INCLUDE and NAME_LIBRARY.
#
# Where NAME_ROOT is given, as a variable or in the environment, nothing is looked for elsewhere: headers of one
# installation and a library of another crash. Folders: those of archives (include, lib), of system packages, and of pip
# wheels, whose libraries carry their version in the name and lie in the wheel's own folder.
function(autogaze_find name header version_header libraries)
  set(root "${${name}_ROOT}")
  if(NOT root)
    set(root "$ENV{${name}_ROOT}")
  endif()
  set(only "")
  if(root)
    set(only NO_DEFAULT_PATH)
  endif()
  find_path(${name}_INCLUDE ${header} HINTS ${root} ${only}
            PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
  find_library(${name}_LIBRARY NAMES ${libraries} NAMES_PER_DIR HINTS ${root} ${only}
               PATH_SUFFIXES lib lib64 lib/x64 capi tensorrt_libs tensorrt_rtx_libs)
  if(${name}_INCLUDE AND ${name}_LIBRARY AND version_header)
    autogaze_same_version(${name} "${${name}_INCLUDE}/${version_header}" "${${name}_LIBRARY}")
  endif()
endfunction()

# Headers of one major version and a library of another are refused while building, not when a program crashes.
function(autogaze_same_version name header library)
  if(NOT EXISTS "${header}")
    return()
  endif()
  file(STRINGS "${header}" lines REGEX "#define (NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE|TRT_MAJOR_RTX) +[0-9]+")
  string(REGEX MATCH "[0-9]+" major "${lines}")
  get_filename_component(real "${library}" REALPATH)
  set(of "")
  if(real MATCHES "\\.so\\.([0-9]+)")
    set(of ${CMAKE_MATCH_1})
  elseif(real MATCHES "_([0-9]+)(_[0-9]+)?\\.lib$")
    set(of ${CMAKE_MATCH_1})
  endif()
  if(of AND major AND NOT of EQUAL major)
    message(FATAL_ERROR "${name}: ${header} is of version ${major}, ${real} of ${of}; set ${name}_ROOT")
  endif()
endfunction()
