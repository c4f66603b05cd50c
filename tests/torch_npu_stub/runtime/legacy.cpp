// Operators that are compiled at run time, from before aclnn: their descriptions are accepted, running one fails by
// name.
#include "stub.h"

struct aclTensorDesc {};
struct aclDataBuffer {};
struct aclopAttr {};

extern "C" {

aclTensorDesc* aclCreateTensorDesc(aclDataType, int, const int64_t*, aclFormat) { return new aclTensorDesc; }
void aclDestroyTensorDesc(const aclTensorDesc* description) { delete description; }
void aclSetTensorDescName(aclTensorDesc*, const char*) {}
aclFormat aclGetTensorDescFormat(const aclTensorDesc*) { return ACL_FORMAT_ND; }
aclDataType aclGetTensorDescType(const aclTensorDesc*) { return ACL_DT_UNDEFINED; }
size_t aclGetTensorDescNumDims(const aclTensorDesc*) { return 0; }
aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) { return ACL_SUCCESS; }
aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) { return ACL_SUCCESS; }
aclError aclSetTensorPlaceMent(aclTensorDesc*, aclMemType) { return ACL_SUCCESS; }

aclDataBuffer* aclCreateDataBuffer(void*, size_t) { return new aclDataBuffer; }

aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  delete buffer;
  return ACL_SUCCESS;
}

aclopAttr* aclopCreateAttr() { return new aclopAttr; }
void aclopDestroyAttr(const aclopAttr* attributes) { delete attributes; }
aclError aclopSetAttrBool(aclopAttr*, const char*, uint8_t) { return ACL_SUCCESS; }
aclError aclopSetAttrInt(aclopAttr*, const char*, int64_t) { return ACL_SUCCESS; }
aclError aclopSetAttrFloat(aclopAttr*, const char*, float) { return ACL_SUCCESS; }
aclError aclopSetAttrString(aclopAttr*, const char*, const char*) { return ACL_SUCCESS; }
aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) { return ACL_SUCCESS; }
aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) { return ACL_SUCCESS; }
aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) { return ACL_SUCCESS; }

aclError aclopCompileAndExecute(const char* operation, int, const aclTensorDesc* const[], const aclDataBuffer* const[],
                                int, const aclTensorDesc* const[], aclDataBuffer* const[], const aclopAttr*,
                                aclopEngineType, aclopCompileType, const char*, aclrtStream) {
  return stub::not_emulated(std::string("the legacy operator ") + operation);
}

aclError aclopCompileAndExecuteV2(const char* operation, int, aclTensorDesc*[], aclDataBuffer*[], int, aclTensorDesc*[],
                                  aclDataBuffer*[], aclopAttr*, aclopEngineType, aclopCompileType, const char*,
                                  aclrtStream) {
  return stub::not_emulated(std::string("the legacy operator ") + operation);
}

}  // extern "C"
