# What goes into deploy/package's folder, and how it finds its libraries there: in lib beside bin,
# wherever the folder is. RPATH, which the loader also follows for the libraries' own needs, and
# not RUNPATH, which it doesn't.
set(programs mla-coordinator mla-worker mla-keys mla-synth mla-check mla-size mla-soak mla-bench hostile)
get_property(gpu_tests GLOBAL PROPERTY MLA_GPU_TESTS)
list(APPEND programs ${gpu_tests} test_collective)
if(MLA_CUDA)
    list(APPEND programs test_collective_nccl)
endif()
set_target_properties(${programs} PROPERTIES INSTALL_RPATH "$ORIGIN/../lib")
foreach(program ${programs})
    target_link_options(${program} PRIVATE LINKER:--disable-new-dtags)
endforeach()
add_custom_target(mla_package DEPENDS ${programs})
install(TARGETS ${programs} RUNTIME DESTINATION bin COMPONENT package)

# The one list of what tests/gpu runs, beside the programs.
list(JOIN gpu_tests "\n" gpu_tests)
file(WRITE ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/gpu-tests "${gpu_tests}\n")
install(FILES ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/gpu-tests DESTINATION bin COMPONENT package)
